/* Figures under the reader's finger: what all of them are made of.

   The directive `live` (tools/live.py) leaves a place on the page, with words that say what the figure shows. Where
   scripts run, the figure takes the place of the words. Each figure is a file beside this one: first its arithmetic,
   which knows no page and is compared with minicl by a test, then its drawing. */
const live = (() => {
  const maker = (create) => (tag, attributes = {}, ...children) => {
    const element = create(tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children);
    return element;
  };
  const html = maker((tag) => document.createElement(tag));
  const svg = maker((tag) => document.createElementNS("http://www.w3.org/2000/svg", tag));
  let names = 0;
  const newName = () => `live-${names++}`;

  /* Fill every place that is meant for the figure of this name: `build` is given an empty box. */
  const figure = (name, build) => {
    if (typeof document === "undefined") return; // a test reads the arithmetic alone
    for (const place of document.querySelectorAll(`figure.live-${name}`)) {
      const box = html("div", {class: "live-box"});
      build(box);
      place.querySelector(".live-words").hidden = true;
      place.prepend(box);
    }
  };

  /* A drawing in units of its own, with a mark that tells a screen reader that the words below say it all. */
  const drawing = (width, height, label) =>
    svg("svg", {viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label});

  /* The result in words, which screen readers say whenever it changes. */
  const words = () => html("output", {class: "live-says", "aria-live": "polite"});

  /* A slider of the browser's own, with its name and its value in words: arrow keys, Home and End work. */
  const slider = (label, {min, max, step = 1, value, say = String}, changed) => {
    const id = newName();
    const input = html("input", {id, type: "range", min, max, step});
    const shown = html("span", {"aria-hidden": "true"});
    const show = () => {
      shown.textContent = say(Number(input.value));
      input.setAttribute("aria-valuetext", shown.textContent);
    };
    input.value = value;
    show();
    input.addEventListener("input", () => { show(); changed(); });
    return {
      row: html("div", {class: "live-slider"}, html("label", {for: id}, label), input, shown),
      get value() { return Number(input.value); },
      set value(to) { input.value = to; show(); },
    };
  };

  /* One of several: radio buttons in a row. Options are pairs of value and words. */
  const choice = (question, options, changed) => {
    const name = newName();
    const inputs = options.map(([value, said], i) => {
      const input = html("input", {type: "radio", name, value});
      input.checked = i === 0;
      input.addEventListener("change", changed);
      return html("label", {}, input, ` ${said}`);
    });
    const row = html("fieldset", {class: "live-choice"}, html("legend", {}, question), ...inputs);
    return {row, get value() { return row.querySelector(":checked").value; }};
  };

  /* Buttons in a row: pairs of words and what to do. */
  const buttons = (pairs) => html("div", {class: "live-buttons"}, ...pairs.map(([said, act]) => {
    const button = html("button", {type: "button"}, said);
    button.addEventListener("click", act);
    return button;
  }));

  /* Follow the finger or the mouse from where it goes down on an element: `begin` returns what to do as it moves. */
  const drag = (element, begin) => element.addEventListener("pointerdown", (down) => {
    const move = begin(down);
    if (!move) return;
    const end = new AbortController();
    addEventListener("pointermove", move, {signal: end.signal});
    for (const name of ["pointerup", "pointercancel"]) addEventListener(name, () => end.abort(), {signal: end.signal});
  });

  /* Numbers as the book writes them. */
  const fixed = (x, digits = 2) => Number.isNaN(x) ? "no number" : x.toFixed(digits).replace(/^-/, "−");
  const signed = (x, digits = 2) => (x > 0 ? "+" : "") + fixed(x, digits);
  const whole = (x) => x.toLocaleString("en");
  const percent = (x) => `${Math.round(100 * x)}\u00a0%`;
  const plural = (n, one) => `${whole(n)} ${one}${n === 1 ? "" : "s"}`;

  return {html, svg, figure, drawing, words, slider, choice, buttons, drag, fixed, signed, whole, percent, plural};
})();
