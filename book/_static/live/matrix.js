/* An accuracy matrix whose cells are dragged or typed, and the four numbers that are read off it. */
live.matrix = (() => {
  const mean = (values) => values.reduce((sum, x) => sum + x, 0) / values.length; // of nothing: NaN
  const range = (from, to) => Array.from({length: Math.max(0, to - from)}, (_, i) => from + i);

  /* R[i][j]: accuracy on task j after learning task i; b[j]: of an untrained network. NaN: nothing to measure. */
  const ACC = (R) => mean(R.at(-1));
  const BWT = (R) => mean(range(0, R.length - 1).map((j) => R.at(-1)[j] - R[j][j]));
  const FWT = (R, b) => mean(range(1, R.length).map((j) => R[j - 1][j] - b[j]));
  const F = (R) => mean(range(0, R.length - 1).map((j) => {
    const before = R.slice(0, -1).map((row) => row[j]).filter((x) => !Number.isNaN(x));
    return (before.length ? Math.max(...before) : NaN) - R.at(-1)[j];
  }));

  /* Whether a number reads the cell of row i and column j; row -1 is b. */
  const reads = {
    ACC: (i, j, T) => i === T - 1,
    BWT: (i, j, T) => j < T - 1 && (i === T - 1 || i === j),
    FWT: (i, j) => j > 0 && (i === j - 1 || i === -1),
    F: (i, j, T) => j < T - 1 && i >= 0,
  };
  return {ACC, BWT, FWT, F, reads};
})();

live.figure("matrix", (box) => {
  const {reads, ...numbers} = live.matrix;
  const {html} = live;
  const T = 3, _ = NaN, LOW = [0.1, 0.1, 0.1], NONE = [_, _, _];
  const tables = {
    "the table above": [LOW, [0.9, 0.3, 0.2], [0.7, 0.8, 0.4], [0.5, 0.6, 0.9]],
    "all is lost": [LOW, [0.9, 0.1, 0.1], [0.1, 0.9, 0.1], [0.1, 0.1, 0.9]],
    "nothing is lost": [LOW, [0.9, 0.3, 0.2], [0.9, 0.9, 0.4], [0.9, 0.9, 0.9]],
    "nothing is learned": [LOW, LOW, LOW, LOW],
    "best in the middle": [NONE, [0.6, _, _], [0.9, 0.8, _], [0.6, 0.8, 0.9]],
  };
  const rows = ["before any task", ...Array.from({length: T}, (_, i) => `after task ${i}`)];

  const cells = rows.map((row, i) => Array.from({length: T}, (_, j) => {
    const label = `${row}, accuracy on task ${j}`;
    const input = html("input", {type: "number", min: 0, max: 1, step: 0.05, "aria-label": label});
    input.addEventListener("input", show);
    live.drag(input, (down) => {
      const from = Number(input.value), width = input.offsetWidth;
      return (event) => {
        const by = (event.clientX - down.clientX) / width;
        if (Math.abs(by) < 0.05) return; // a click, to type
        input.value = (Math.round(20 * within(from + by)) / 20).toFixed(2);
        show();
      };
    });
    return html("td", {class: i ? "" : "live-before"}, input);
  }));
  const head = html("tr", {}, html("td"), ...LOW.map((_, j) => html("th", {scope: "col"}, `task ${j}`)));
  const body = rows.map((row, i) => html("tr", {}, html("th", {scope: "row"}, row), ...cells[i]));
  const table = html("table", {class: "live-table"}, html("thead", {}, head), html("tbody", {}, ...body));
  const options = [["", "none"], ...Object.keys(numbers).map((name) => [name, name])];
  const which = live.choice("Mark the cells that are read by", options, show);
  const says = live.words();

  const within = (x) => Math.max(0, Math.min(1, x));
  const valueOf = (cell) => cell.firstChild.value === "" ? NaN : within(Number(cell.firstChild.value));
  const fill = (table) => {
    table.forEach((row, i) => row.forEach((x, j) => {
      cells[i][j].firstChild.value = Number.isNaN(x) ? "" : x.toFixed(2);
    }));
    show();
  };

  function show() {
    const [b, ...R] = cells.map((row) => row.map(valueOf));
    cells.forEach((row, i) => row.forEach((cell, j) => {
      cell.style.setProperty("--share", valueOf(cell) || 0);
      cell.classList.toggle("live-read", Boolean(reads[which.value]?.(i - 1, j, T)));
    }));
    table.classList.toggle("live-marked", which.value !== "");
    const [ACC, BWT, FWT, F] = Object.values(numbers).map((number) => number(R, b));
    const all = {ACC: live.fixed(ACC), BWT: live.signed(BWT), FWT: live.signed(FWT), F: live.signed(F)};
    const read = Object.entries(all).map((pair) => pair.join("\u00a0")).join(", ");
    says.textContent = `${read}. ${meaning(ACC, BWT, FWT, F)}`;
  }

  function meaning(ACC, BWT, FWT, F) {
    const near = (x) => Math.abs(x) < 0.005;
    const said = [];
    if (BWT < -0.005) said.push("Later tasks did harm to earlier ones.");
    if (BWT > 0.005) said.push("Later tasks made earlier ones better.");
    if (near(BWT) && near(F)) said.push(ACC < 0.3 ? "Nothing was lost, for nothing was learned." : "Nothing was lost.");
    if (near(BWT) && F > 0.005) said.push("BWT sees no loss, but a task was once known better than it is in the end.");
    if (FWT > 0.005) said.push("Earlier tasks helped those not learned yet.");
    if (FWT < -0.005) said.push("Earlier tasks were in the way of those not learned yet.");
    if (Number.isNaN(FWT)) said.push("FWT has cells to read that are empty, so it is no number.");
    return said.join(" ");
  }

  const presets = Object.entries(tables).map(([name, table]) => [name, () => fill(table)]);
  box.append(table, says, which.row, live.buttons(presets));
  fill(tables["the table above"]);
});
