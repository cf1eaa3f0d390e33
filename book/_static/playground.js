/* The page of the playground (book/playground.md): controls, a drawing, and words for what happens. The arithmetic is
   in playground-engine.js, the images in playground-data.js. Without scripts the page shows a table in its place. */
(() => {
  "use strict";
  const place = document.querySelector(".playground");
  if (!place || !globalThis.PLAYGROUND_DATA) return;
  const { Run, tasksFrom } = globalThis.PlaygroundEngine;
  const tasks = tasksFrom(globalThis.PLAYGROUND_DATA);
  const still = matchMedia("(prefers-reduced-motion: reduce)");

  const RATES = [0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1];
  const SPEEDS = [1, 2, 5, 10, 20];
  const METHODS = {
    finetune: {
      name: "Fine-tuning",
      says: "Train on each task as it comes, and protect nothing.",
      page: "why_networks_forget",
    },
    ewc: {
      name: "EWC",
      says: "Hold every weight by a spring, stiff where task 1 needs the weight.",
      page: "regularization",
      strength: {
        name: "Strength of the springs, λ",
        values: [0, 1, 3, 10, 20, 50, 100, 300],
        first: 10,
        sign: "λ = ",
      },
    },
    er: {
      name: "Replay",
      says: "Keep some images of task 1. Half of every batch is drawn from them.",
      page: "replay",
      strength: { name: "Images kept of task 1", values: [1, 5, 20, 50, 100, 200, 400], first: 100, sign: "images: " },
    },
    packnet: {
      name: "PackNet",
      says: "Keep the largest weights of task 1, freeze them, and give the rest to task 2.",
      page: "packnet",
      needsTask: true,
      strength: {
        name: "Share of its weights that a task keeps",
        values: [0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95],
        first: 0.5,
        sign: "share ",
      },
    },
    hat: {
      name: "HAT",
      says: "Learn which units task 1 uses. What leads into them moves no more.",
      page: "hat",
      needsTask: true,
      strength: { name: "Price of a unit, c", values: [0, 0.05, 0.1, 0.2, 0.4, 0.75], first: 0.1, sign: "c = " },
    },
  };
  const FIRST_RATE = 0.2;

  // ---- the controls -------------------------------------------------------------------------------------------------

  const radios = Object.entries(METHODS)
    .map(([key, { name }]) => `<label><input type="radio" name="pg-method" value="${key}"> ${name}</label>`)
    .join("");
  const slider = (id, name, last) => `
    <div class="pg-slider">
      <label for="pg-${id}">${name}</label>
      <input id="pg-${id}" type="range" min="0" max="${last}" step="1"><output for="pg-${id}"></output>
    </div>`;
  place.innerHTML = `
    <fieldset class="pg-methods"><legend>Method</legend>${radios}</fieldset>
    <p class="pg-says"></p>
    <div class="pg-sliders">
      ${slider("strength", "", 0)}
      ${slider("rate", "Learning rate", RATES.length - 1)}
      ${slider("speed", "Steps in each frame", SPEEDS.length - 1)}
      <div class="pg-slider"><label for="pg-seed">Seed</label><input id="pg-seed" type="number" min="0" max="999"
        value="0"></div>
    </div>
    <label class="pg-heads"><input id="pg-heads" type="checkbox"> An output layer for each task: the network is told
      which task an image belongs to</label>
    <div class="pg-buttons">
      <button type="button" id="pg-start">Start</button>
      <button type="button" id="pg-step">Step</button>
      <button type="button" id="pg-reset">Reset</button>
    </div>
    <p class="pg-status" role="status" aria-live="polite"></p>
    <figure class="pg-chart">
      <svg role="img" aria-labelledby="pg-caption pg-readout"></svg>
      <figcaption id="pg-caption">Right answers on test images of both tasks, step by step.</figcaption>
    </figure>
    <p class="pg-readout" id="pg-readout"></p>
    <div class="pg-images"></div>
    <div class="pg-runs" role="region" aria-label="Finished runs" tabindex="0" hidden>
      <table class="table"><caption>Finished runs, the newest first</caption><thead><tr><th scope="col">Run</th>
        <th scope="col">Task 1, when learned</th><th scope="col">Task 1, in the end</th>
        <th scope="col">Task 2, in the end</th></tr></thead><tbody></tbody></table>
    </div>`;
  const find = (selector) => place.querySelector(selector);
  const control = Object.fromEntries(
    ["strength", "rate", "speed", "seed", "heads", "start", "step", "reset"].map((id) => [id, find(`#pg-${id}`)]),
  );
  const chosen = {}; // of each method, the place of its slider
  let run, playing = false, before = null, method = "finetune", ownLayers = false;

  const percent = (share) => `${Math.round(100 * share)} %`;
  const now = (t) => (run.curve[t].length ? run.curve[t].at(-1)[1] : NaN);
  const strength = () => METHODS[method].strength?.values[control.strength.value];
  const ownHeads = () => Boolean(METHODS[method].needsTask) || control.heads.checked;

  function show(input, text) {
    input.nextElementSibling.textContent = text;
    input.setAttribute("aria-valuetext", text);
  }

  function showControls() {
    const { says, page, strength: own, needsTask } = METHODS[method];
    find(`input[value=${method}]`).checked = true;
    find(".pg-says").innerHTML = `${says} <a href="${page}.html">The chapter</a>.`;
    control.strength.disabled = !own;
    control.strength.max = own ? own.values.length - 1 : 0;
    control.strength.value = own ? (chosen[method] ??= own.values.indexOf(own.first)) : 0;
    control.strength.previousElementSibling.textContent = own ? own.name : "Strength";
    show(control.strength, own ? String(strength()) : "none to set");
    show(control.rate, String(RATES[control.rate.value]));
    show(control.speed, String(SPEEDS[control.speed.value]));
    control.heads.disabled = Boolean(needsTask);
    control.heads.checked = Boolean(needsTask) || ownLayers;
  }

  // ---- words --------------------------------------------------------------------------------------------------------

  const say = (text) => (find(".pg-status").textContent = text);

  function accuracies() {
    const second = Number.isNaN(now(1)) ? "task 2 has not come yet" : `task 2: ${percent(now(1))}`;
    return run.steps ? `Task 1: ${percent(now(0))}, ${second}.` : "Nothing has been learned yet.";
  }

  function named() {
    const { name, strength: own } = METHODS[method];
    const parts = [name, own && own.sign + strength(), `rate ${RATES[control.rate.value]}`];
    parts.push(ownHeads() ? "two output layers" : "one output layer", `seed ${run.seed}`);
    return parts.filter(Boolean).join(", ");
  }

  function tell(happened) {
    if (happened === "pruned")
      say(`Task ${run.learner.task + 1}: pruned. What is kept is trained again. ${accuracies()}`);
    if (happened === "next task") say(`Task 1 has been learned: ${percent(now(0))}. Now task 2. ${run.learner.used()}`);
    if (happened === "diverged")
      say(`The loss grew without bound at step ${run.steps}: the steps are too long. Lower the rate or the strength.`);
    if (happened === "finished") {
      const [learned, end] = [whenLearned(), now(0)];
      const verdict =
        end === learned ? "It kept every answer that it had." : `When it was learned it was ${percent(learned)}.`;
      say(`Finished. Task 1: ${percent(end)}. ${verdict} Task 2: ${percent(now(1))}. ${run.learner.used()}`);
    }
  }

  /** The accuracy on task 1 when task 2 began. */
  function whenLearned() {
    return run.curve[0].filter(([step]) => step <= run.perTask).at(-1)[1];
  }

  function note() {
    const shares = [whenLearned(), now(0), now(1)];
    const cells = [named(), ...shares.map((share) => (Number.isNaN(share) ? "–" : percent(share)))];
    if (run.diverged) cells[0] += ": grew without bound";
    const row = document.createElement("tr");
    cells.forEach((text, i) => {
      const cell = document.createElement(i ? "td" : "th");
      if (!i) cell.scope = "row";
      cell.textContent = text;
      row.append(cell);
    });
    const body = find(".pg-runs tbody");
    body.prepend(row);
    while (body.rows.length > 8) body.lastElementChild.remove();
    find(".pg-runs").hidden = false;
    before = run.curve[0];
  }

  // ---- the drawing --------------------------------------------------------------------------------------------------

  const chart = find(".pg-chart svg");

  function draw() {
    const width = Math.max(280, chart.parentElement.clientWidth || 640), height = 280;
    const [left, right, top, bottom] = [44, 62, 14, 34], steps = 2 * run.perTask;
    const x = (step) => left + ((width - left - right) * step) / steps;
    const y = (share) => top + (height - top - bottom) * (1 - share);
    const line = (points, kind) => {
      const places = points.map(([step, share]) => `${x(step).toFixed(1)},${y(share).toFixed(1)}`);
      return `<polyline class="${kind}" points="${places.join(" ")}"/>`;
    };
    const parts = [0, 0.25, 0.5, 0.75, 1].map(
      (share) =>
        `<line class="pg-grid" x1="${left}" x2="${width - right}" y1="${y(share)}" y2="${y(share)}"/>` +
        `<text x="${left - 6}" y="${y(share) + 5}" text-anchor="end">${100 * share}%</text>`,
    );
    parts.push(`<line class="pg-switch" x1="${x(run.perTask)}" x2="${x(run.perTask)}" y1="${y(1)}" y2="${y(0)}"/>`);
    parts.push(`<text x="${x(0)}" y="${height - 12}">task 1 is trained</text>`);
    parts.push(`<text x="${x(run.perTask)}" y="${height - 12}">task 2 is trained</text>`);
    for (const step of run.pruned)
      parts.push(`<text x="${x(step)}" y="${y(0) - 6}" text-anchor="middle">pruned</text>`);
    if (before) parts.push(line(before, "pg-before"));
    run.curve.forEach((points, t) => parts.push(line(points, `pg-line-${t + 1}`)));
    const ends = run.curve.map((points) => (points.length && run.steps ? y(points.at(-1)[1]) : NaN));
    if (Math.abs(ends[0] - ends[1]) < 16) {
      const [middle, up] = [(ends[0] + ends[1]) / 2, ends[0] <= ends[1] ? 8 : -8];
      [ends[0], ends[1]] = [middle - up, middle + up];
    }
    ends.forEach((end, t) => {
      const at = `x="${x(run.steps) + 6}" y="${end + 5}"`;
      if (!Number.isNaN(end)) parts.push(`<text class="pg-name-${t + 1}" ${at}>task ${t + 1}</text>`);
    });
    chart.setAttribute("viewBox", `0 0 ${width} ${height}`);
    chart.innerHTML = parts.join("");
    const loss = Number.isFinite(run.loss) ? ` Loss ${run.loss.toFixed(2)}.` : "";
    find(".pg-readout").textContent = `Step ${run.steps} of ${steps}.${loss} ${accuracies()} ${run.learner.used()}`;
    drawImages();
  }

  /** One test image as each of the tasks shows it, and what the network says. */
  function drawImages() {
    const boxes = tasks.map(({ test }, t) => {
      const pixels = [...test.x.subarray(0, 64)]
        .map((v, k) => (v ? `<rect x="${k % 8}" y="${Math.floor(k / 8)}" width="1" height="1" opacity="${v}"/>` : ""))
        .join("");
      const what = t ? "The same pixels in another order, as task 2 shows them" : `A ${test.y[0]}, as task 1 shows it`;
      return `<figure><svg viewBox="0 0 8 8" role="img" aria-label="${what}">${pixels}</svg>
        <figcaption>${what}. ${answer(test, t)}</figcaption></figure>`;
    });
    find(".pg-images").innerHTML = boxes.join("");
  }

  function answer(test, t) {
    if (!run.steps || !run.learner.head(t)) return "";
    const z = run.learner.logits(test.x.subarray(0, 64), 1, t);
    return `The network says ${z.indexOf(Math.max(...z))}.`;
  }

  // ---- what the reader does -----------------------------------------------------------------------------------------

  function reset(words) {
    pause();
    const settings = { method, strength: strength(), ownHeads: ownHeads(), seed: Number(control.seed.value) || 0 };
    run = new Run({ tasks, lr: RATES[control.rate.value], ...settings });
    control.start.disabled = control.step.disabled = false;
    draw();
    say(words);
  }

  function pause() {
    playing = false;
    control.start.textContent = "Start";
  }

  /** One step, and what is to be said about it; returns whether something happened. */
  function advance() {
    const happened = run.step();
    run.diverged = happened === "diverged";
    if (happened) tell(happened);
    if (run.done) {
      pause();
      note();
      const buttons = [control.start, control.step];
      if (buttons.includes(document.activeElement)) control.reset.focus(); // a button that is off loses the keyboard
      for (const button of buttons) button.disabled = true;
    }
    return Boolean(happened);
  }

  function frame() {
    if (!playing) return;
    let happened = false;
    for (let k = 0; k < SPEEDS[control.speed.value] && playing; k++) happened = advance() || happened;
    if (!still.matches || happened) draw(); // where less motion is asked for: at the end of each stage
    if (playing) requestAnimationFrame(frame);
  }

  control.start.addEventListener("click", () => {
    if (playing) {
      pause();
      draw();
      say(`Paused at step ${run.steps}. ${accuracies()}`);
    } else {
      playing = true;
      control.start.textContent = "Pause";
      say(run.steps ? "Going on." : `Training on task 1: ${named()}.`);
      requestAnimationFrame(frame);
    }
  });
  control.step.addEventListener("click", () => {
    pause();
    if (!advance()) say(`Step ${run.steps}. Loss ${run.loss.toFixed(2)}. ${accuracies()}`);
    draw();
  });
  control.reset.addEventListener("click", () => reset("Back at the start."));
  place.addEventListener("input", ({ target }) => {
    if (target === control.speed) return show(target, String(SPEEDS[target.value]));
    if (target.name === "pg-method") method = target.value;
    if (target === control.strength) chosen[method] = Number(target.value);
    if (target === control.heads) ownLayers = target.checked;
    showControls();
    reset(`Back at the start, with ${METHODS[method].name}.`);
  });
  addEventListener("resize", () => draw());

  control.rate.value = RATES.indexOf(FIRST_RATE);
  control.speed.value = 1;
  showControls();
  reset("Choose a method, and start.");
})();
