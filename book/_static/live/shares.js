/* PackNet's plan: how much of what it finds free each task keeps, and what is left for the others. */
live.shares = (() => {
  /* To the nearest whole number, of two equally near the even one: so Python rounds, and so does PackNet. */
  const round = (x) => {
    const below = Math.floor(x), rest = x - below;
    return rest > 0.5 || (rest === 0.5 && below % 2 === 1) ? below + 1 : below;
  };

  /* For each task, how many weights it keeps, and how many are free after it. A layer is planned by itself. */
  const plan = (layers, keeps) => {
    let free = [...layers];
    return keeps.map((keep) => {
      const left = free.map((n) => round((1 - keep) * n));
      const kept = free.reduce((sum, n, i) => sum + n - left[i], 0);
      free = left;
      return {kept, free: left.reduce((sum, n) => sum + n, 0)};
    });
  };

  return {plan};
})();

live.figure("shares", (box) => {
  const {plan} = live.shares;
  const {svg, html, whole, percent} = live;
  const LAYERS = [64 * 100, 100 * 100], TOTAL = LAYERS[0] + LAYERS[1], MOST = 8;
  const WIDTH = 360, ROW = 30, BAR = 250, LEFT = 52;
  const keeps = Array.from({length: MOST}, () => 0.5);

  const picture = live.drawing(WIDTH, ROW, "A bar for each task: what earlier tasks own, what this one keeps, what stays free");
  const says = live.words();
  const tasks = live.slider("tasks", {min: 1, max: MOST, value: 4}, show);
  const range = {min: 1, max: 100, value: 50, say: (x) => `${x} %`};
  const sliders = keeps.map((_, k) => live.slider(`task ${k + 1} keeps`, range, () => {
    keeps[k] = sliders[k].value / 100;
    show();
  }));
  const set = (share) => () => {
    keeps.forEach((_, k) => { keeps[k] = share(k); sliders[k].value = 100 * keeps[k]; });
    show();
  };

  function show() {
    const T = tasks.value, steps = plan(LAYERS, keeps.slice(0, T)), wide = (n) => BAR * n / TOTAL;
    sliders.forEach((slider, k) => { slider.row.hidden = k >= T; });
    picture.setAttribute("viewBox", `0 0 ${WIDTH} ${ROW * T + 4}`);
    picture.replaceChildren(...steps.map(({kept, free}, k) => {
      const y = ROW * k + 4, before = TOTAL - free - kept;
      const part = (kind, from, n) =>
        svg("rect", {class: `live-${kind}`, x: LEFT + wide(from), y, width: wide(n), height: ROW - 8});
      return svg("g", {}, part("earlier", 0, before), part("own", before, kept), part("room", before + kept, free),
        svg("text", {class: "live-note", x: 0, y: y + 16}, `task ${k + 1}`),
        svg("text", {class: "live-note", x: WIDTH, y: y + 16, "text-anchor": "end"}, whole(kept)));
    }));
    const {free} = steps.at(-1), numbers = steps.map((step) => step.kept);
    const most = Math.max(...numbers), least = Math.min(...numbers);
    const said = [`Of ${whole(TOTAL)} weights, ${whole(TOTAL - free)} have an owner after ${live.plural(T, "task")}, ` +
      `and ${whole(free)} are free (${percent(free / TOTAL)}).`];
    if (least === 0) said.push("A task that finds nothing free is refused.");
    else if (T > 1 && most < 1.05 * least) said.push("All tasks keep nearly the same number.");
    else if (T > 1) said.push(`The richest task keeps ${whole(most)}, the poorest ${whole(least)}.`);
    says.textContent = said.join(" ");
  }

  box.append(picture, says, live.buttons([
    ["half of what is free", set(() => 0.5)],
    ["the paper's plan", set((k) => k ? 0.25 : 0.5)],
    ["a fifth of what is free", set(() => 0.2)],
  ]), html("div", {class: "live-sliders"}, tasks.row, ...sliders.map((slider) => slider.row)));
  show();
});
