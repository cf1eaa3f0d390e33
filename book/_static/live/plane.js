/* The plane of two weights: task A has been learned, task B pulls, a spring holds. */
live.plane = (() => {
  // Second derivatives of each task's loss, as [first, mixed, second]. A's valley stands upright, B's leans.
  const A = [4, 0, 0.05];
  const TILT = -Math.PI / 6, ACROSS = 2, ALONG = 0.1;
  const c = Math.cos(TILT), s = Math.sin(TILT);
  const B = [ALONG * c * c + ACROSS * s * s, (ALONG - ACROSS) * c * s, ALONG * s * s + ACROSS * c * c];
  const STEPS = 400;

  const gradient = ([xx, xy, yy], [x, y]) => [xx * x + xy * y, xy * x + yy * y];
  const loss = (task, at, best) => {
    const off = [at[0] - best[0], at[1] - best[1]], g = gradient(task, off);
    return (off[0] * g[0] + off[1] * g[1]) / 2;
  };

  /* How much each weight matters: to task A, as EWC has it, or all alike. */
  const importance = (rule) => rule === "matters" ? [A[0], A[2]] : [1, 1];

  /* Gradient descent from a on L_B(w) + strength * sum_i omega_i (w_i - a_i)^2: every point of the way. */
  const walk = (a, b, omega, strength, lr) => {
    const path = [a];
    for (let step = 0, w = a; step < STEPS && Math.hypot(...w) < 1e6; step++) {
      const pull = gradient(B, [w[0] - b[0], w[1] - b[1]]);
      w = w.map((wi, i) => wi - lr * (pull[i] + 2 * strength * omega[i] * (wi - a[i])));
      path.push(w);
    }
    return path;
  };

  /* With a longer step than this, descent runs away: 2 over the largest curvature of the whole loss. */
  const longestStep = (omega, strength) => {
    const xx = B[0] + 2 * strength * omega[0], yy = B[2] + 2 * strength * omega[1];
    return 4 / (xx + yy + Math.hypot(xx - yy, 2 * B[1]));
  };

  return {A, B, TILT, ACROSS, ALONG, loss, importance, walk, longestStep};
})();

live.figure("plane", (box) => {
  const {A, B, TILT, ACROSS, ALONG, loss, importance, walk, longestStep} = live.plane;
  const {svg, slider, fixed} = live;
  const WIDTH = 360, HEIGHT = 330, SCALE = 70, LEVELS = [0.05, 0.3, 1, 2.5];
  const LEFT = -1.4, TOP = 4;
  const place = ([x, y]) => [(x - LEFT) * SCALE, (TOP - y) * SCALE];
  const points = (path) => path.map((w) => place(w).map((z) => z.toFixed(1)).join()).join(" ");

  const picture = live.drawing(WIDTH, HEIGHT, "The plane of two weights: two valleys, and the way from one to the other");
  const valley = (kind, first, second, tilt) => svg("g", {class: `live-line live-${kind}`}, ...LEVELS.map((level) =>
    svg("ellipse", {
      rx: SCALE * Math.sqrt(2 * level / first), ry: SCALE * Math.sqrt(2 * level / second),
      transform: `rotate(${-tilt * 180 / Math.PI})`,
    })));
  const handle = (kind, name) => svg("g", {class: `live-handle live-${kind}`},
    svg("circle", {r: 20, class: "live-touch"}), svg("circle", {r: 11}), svg("text", {dy: 5}, name));
  const valleys = {a: valley("a", A[0], A[2], 0), b: valley("b", ALONG, ACROSS, TILT)};
  const handles = {a: handle("a", "A"), b: handle("b", "B")};
  const free = svg("polyline", {class: "live-ghost"}), held = svg("polyline", {class: "live-way"});
  const dots = svg("g"), end = svg("path", {class: "live-end", d: "M 0 -9 L 9 0 L 0 9 L -9 0 Z"});
  const axis = (said, where) => svg("text", {class: "live-note", "text-anchor": "end", transform: where}, said);
  picture.append(svg("rect", {width: WIDTH, height: HEIGHT, class: "live-frame"}),
    valleys.a, valleys.b, free, held, dots, end, handles.a, handles.b,
    axis("first weight →", `translate(${WIDTH - 8} ${HEIGHT - 8})`), axis("second weight →", "translate(16 8) rotate(-90)"));

  const move = {min: -1, max: 3.4, step: 0.1, say: (x) => fixed(x, 1)};
  const at = {
    a: [slider("A, first weight", {...move, value: 0}, show), slider("A, second weight", {...move, value: 0}, show)],
    b: [slider("B, first weight", {...move, value: 2}, show), slider("B, second weight", {...move, value: 2}, show)],
  };
  const strength = slider("spring, λ", {min: 0, max: 1, step: 0.05, value: 0.5, say: fixed}, show);
  const lr = slider("learning rate", {min: 0.02, max: 0.6, step: 0.02, value: 0.1, say: fixed}, show);
  const rules = [["matters", "what matters to A (EWC)"], ["alike", "all weights alike"]];
  const rule = live.choice("The spring holds", rules, show);
  const says = live.words();

  for (const task of ["a", "b"]) {
    live.drag(handles[task], (down) => {
      down.preventDefault();
      return (event) => {
        const screen = picture.getScreenCTM().inverse();
        const point = new DOMPoint(event.clientX, event.clientY).matrixTransform(screen);
        at[task][0].value = point.x / SCALE + LEFT;
        at[task][1].value = TOP - point.y / SCALE;
        show();
      };
    });
  }

  function show() {
    const [a, b] = [at.a, at.b].map((pair) => pair.map((one) => one.value));
    const omega = importance(rule.value);
    const path = walk(a, b, omega, strength.value, lr.value);
    const last = path.at(-1), lost = [loss(A, last, a), loss(B, last, b)], most = longestStep(omega, strength.value);
    for (const [task, where] of [["a", a], ["b", b]]) {
      for (const group of [valleys, handles]) group[task].setAttribute("transform", `translate(${place(where)})`);
    }
    // What runs away leaves the picture soon: its first steps say enough.
    const seen = lr.value < most ? path : path.slice(0, 12).map((w) => w.map((z) => Math.max(-99, Math.min(99, z))));
    free.setAttribute("points", points(walk(a, b, omega, 0, Math.min(lr.value, 0.5))));
    held.setAttribute("points", points(seen));
    dots.replaceChildren(...seen.slice(0, 40).map((w) => {
      const [cx, cy] = place(w);
      return svg("circle", {cx, cy, r: 2.2});
    }));
    end.setAttribute("visibility", lr.value < most ? "visible" : "hidden");
    end.setAttribute("transform", `translate(${place(last)})`);
    const limit = `With this spring the longest step that does not run away is ${fixed(most)}.`;
    says.textContent = lr.value < most
      ? `The weights end at (${last.map((z) => fixed(z)).join(", ")}). Loss of task A: ${fixed(lost[0])}, ` +
        `of task B: ${fixed(lost[1])}, together ${fixed(lost[0] + lost[1])}. ${limit}`
      : `The steps are too long: each lands further out than the one before, and the weights run away. ${limit}`;
  }

  box.append(picture, says, rule.row,
    live.html("div", {class: "live-sliders"}, ...[strength, lr, ...at.a, ...at.b].map((one) => one.row)));
  show();
});
