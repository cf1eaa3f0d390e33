/* PNN's bill: what columns and laterals cost, task by task. */
live.bill = (() => {
  /* Parameters that the k-th column brings, k from 1: `units` are those of each layer, inputs first, classes last. */
  const column = (units, k, adapter) => {
    let own = 0, laterals = 0;
    for (let i = 1; i < units.length; i++) {
      own += units[i - 1] * units[i] + units[i];
      if (i === 1 || k === 1) continue; // the first layer reads the input, the first column has nothing to look into
      const direct = (k - 1) * units[i - 1] * units[i];
      laterals += direct + (adapter ? units[i] * units[i] + 1 : 0); // U and alpha, where V is the direct part
    }
    return {own, laterals};
  };

  /* The columns of T tasks: 64 inputs, so many hidden layers of so many units, ten classes. */
  const bill = (T, width, layers, adapter) => {
    const units = [64, ...Array(layers).fill(width), 10];
    return Array.from({length: T}, (_, k) => column(units, k + 1, adapter));
  };
  return {bill};
})();

live.figure("bill", (box) => {
  const {bill} = live.bill;
  const {svg, whole, percent} = live;
  const WIDTH = 360, HEIGHT = 240, LEFT = 46, BOTTOM = 210, TOP = 14;
  const WIDTHS = [16, 32, 64, 128, 256, 512, 1024];

  const picture = live.drawing(WIDTH, HEIGHT, "A bar for each number of tasks: its columns, and the laterals on top");
  const says = live.words();
  const tasks = live.slider("tasks", {min: 1, max: 20, value: 10}, show);
  const widths = {min: 0, max: WIDTHS.length - 1, value: 4, say: (i) => String(WIDTHS[i])};
  const width = live.slider("units in a layer", widths, show);
  const layers = live.slider("hidden layers", {min: 1, max: 6, value: 2}, show);
  const kinds = [["linear", "plain sum (the paper's Eq. 1)"], ["mlp", "adapter (the paper's Eq. 2)"]];
  const kind = live.choice("Laterals", kinds, show);

  /* A number in so few characters that it fits beside an axis. */
  const scaled = (x, unit) => +(x / unit).toPrecision(3);
  const short = (x) => x >= 1e6 ? `${scaled(x, 1e6)} M` : x >= 1e3 ? `${scaled(x, 1e3)} k` : String(x);
  const ceiling = (x) => {
    const unit = 10 ** Math.floor(Math.log10(x));
    return unit * [1, 2, 3, 4, 6, 8, 10].find((n) => n * unit >= x);
  };

  function show() {
    const columns = bill(tasks.value, WIDTHS[width.value], layers.value, kind.value === "mlp");
    let own = 0, laterals = 0;
    const sums = columns.map((one) => ({own: own += one.own, laterals: laterals += one.laterals}));
    const total = own + laterals, top = ceiling(total);
    const y = (n) => BOTTOM - (BOTTOM - TOP) * n / top, step = (WIDTH - LEFT) / sums.length;
    const bar = (kind, k, from, n) => svg("rect", {
      class: `live-${kind}`, x: LEFT + step * (k + 0.15), y: y(from + n), width: 0.7 * step, height: y(from) - y(from + n),
    });
    const label = (said, x, y, anchor) => svg("text", {class: "live-note", x, y, "text-anchor": anchor}, said);
    picture.replaceChildren(
      ...[0, 0.5, 1].flatMap((share) => [
        svg("line", {class: "live-grid", x1: LEFT, x2: WIDTH, y1: y(share * top), y2: y(share * top)}),
        label(short(share * top), LEFT - 5, y(share * top) + 4, "end"),
      ]),
      ...sums.flatMap((sum, k) => [bar("own", k, 0, sum.own), bar("lateral", k, sum.own, sum.laterals)]),
      ...sums.flatMap((_, k) => k === 0 || (k + 1) % (sums.length > 10 ? 5 : 1) === 0
        ? [label(k + 1, LEFT + step * (k + 0.5), BOTTOM + 15, "middle")] : []),
      label("tasks", WIDTH, HEIGHT - 2, "end"),
    );
    const first = columns[0].own, last = columns.at(-1);
    says.textContent = `${live.plural(tasks.value, "task")}: ${whole(total)} parameters, ` +
      `${whole(scaled(total, first))} times those of the first column. ${percent(laterals / total)} are laterals. ` +
      `The last task alone brings ${whole(last.own + last.laterals)}.`;
  }

  box.append(picture, says, kind.row, live.html("div", {class: "live-sliders"}, tasks.row, width.row, layers.row));
  show();
});
