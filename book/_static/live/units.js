/* Eight units, whose owners are clicked, and the weights that HAT locks (the paper's Eq. 2). */
live.units = (() => {
  /* The accumulated mask of a unit: the largest of its masks, whichever tasks they are of. */
  const accumulate = (mask, previous) => Math.max(mask, previous);

  /* The factor on the gradient of the weight that leads from a unit to another: 0 is locked, 1 is free.
     Without a mask of where it comes from (pixels, biases) the unit that it leads to decides alone. */
  const factor = (maskOut, maskIn = Infinity) => 1 - Math.min(maskOut, maskIn);

  return {accumulate, factor};
})();

live.figure("units", (box) => {
  const {accumulate, factor} = live.units;
  const {svg, html} = live;
  const OWNERS = [[0, 0], [1, 0], [0, 1], [1, 1]]; // whether task 1, and whether task 2, has claimed the unit
  const NAMES = ["free", "claimed by task 1", "claimed by task 2", "claimed by tasks 1, 2"];
  const SIGNS = ["", "1", "2", "1, 2"];
  const WIDTH = 360, HEIGHT = 290, X = [110, 270], Y = [60, 122, 184, 246];
  const owners = [[1, 1, 3, 0], [1, 2, 0, 0]]; // of the lower layer, and of the upper

  const picture = live.drawing(WIDTH, HEIGHT, "Four units of layer 1 and four of layer 2, and the weights between them");
  const lines = svg("g");
  const note = (said, x, y, anchor = "middle") => svg("text", {class: "live-note", x, y, "text-anchor": anchor}, said);
  picture.append(note("pixels", 36, 24), note("layer 1", X[0], 24), note("layer 2", X[1], 24), lines);
  const stage = html("div", {class: "live-stage"}, picture);
  const units = owners.map((layer, l) => layer.map((_, u) => {
    const button = html("button", {type: "button", class: "live-unit"});
    button.style.left = `${100 * X[l] / WIDTH}%`;
    button.style.top = `${100 * Y[u] / HEIGHT}%`;
    button.addEventListener("click", () => { layer[u] = (layer[u] + 1) % OWNERS.length; show(); });
    stage.append(button);
    return button;
  }));
  const set = (lower, upper) => () => { owners[0].splice(0, 4, ...lower); owners[1].splice(0, 4, ...upper); show(); };
  const says = live.words();
  const line = (x1, y1, x2, y2, free) => svg("line", {x1, y1, x2, y2, class: free ? "live-free" : "live-locked"});

  function show() {
    const masks = owners.map((layer) => layer.map((owner) => accumulate(...OWNERS[owner])));
    let locked = 0, strangers = 0, open = 0;
    lines.replaceChildren();
    masks[1].forEach((out, i) => masks[0].forEach((into, j) => {
      const free = factor(out, into) > 0;
      const together = OWNERS[owners[1][i]].some((has, task) => has && OWNERS[owners[0][j]][task]);
      locked += !free;
      strangers += !free && !together;
      open += out && !into;
      lines.append(line(X[0], Y[j], X[1], Y[i], free));
    }));
    masks[0].forEach((out, j) => lines.append(line(36, Y[j], X[0], Y[j], factor(out) > 0)));
    units.forEach((layer, l) => layer.forEach((button, u) => {
      const owner = owners[l][u];
      button.textContent = SIGNS[owner];
      button.dataset.owner = owner;
      button.setAttribute("aria-label", `layer ${l + 1}, unit ${u + 1}: ${NAMES[owner]}`);
    }));
    const said = [`${locked} of the 16 weights between the layers are locked, and ${16 - locked} may move.`];
    if (strangers) {
      said.push(`Of these, ${strangers} between units of different tasks: ` +
        "no task uses them, but the rule looks at all tasks together.");
    }
    if (open) {
      said.push(`${live.plural(open, "weight")} from a free unit into a claimed one may move: the tasks that claimed it ` +
        "have closed the gate of the free unit.");
    }
    said.push(`The pixels' weights into ${live.plural(masks[0].filter(Boolean).length, "unit")} of layer 1 are locked.`);
    says.textContent = said.join(" ");
  }

  box.append(stage, says, live.buttons([
    ["nothing claimed", set([0, 0, 0, 0], [0, 0, 0, 0])],
    ["task 1 has come", set([1, 1, 1, 0], [1, 1, 0, 0])],
    ["then task 2", set([1, 1, 3, 2], [1, 3, 2, 0])],
    ["full", set([1, 1, 3, 2], [1, 3, 2, 2])],
  ]));
  show();
});
