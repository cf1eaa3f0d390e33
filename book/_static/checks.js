/* Answers to exercises, judged in the page: no Python runs and nothing is sent anywhere.

   Each form holds the table of its exercise, which the build takes from minicl (minicl/exercises/_declared.py). `judge`
   does with it what `minicl.check` does, step by step, and says the same words; tests/book/test_checks_page.py holds the
   two together. What was answered is kept in the browser, and can be saved as a file that a teacher can mark. */
const checks = (() => {
  // ---- judging ---------------------------------------------------------------------------------------------------

  /** A text as Python shows it, in quotes. */
  const quoted = text => {
    const quote = text.includes("'") && !text.includes('"') ? '"' : "'";
    const escaped = text.replaceAll("\\", "\\\\").replaceAll("\n", "\\n").replaceAll("\r", "\\r").replaceAll("\t", "\\t");
    return quote + escaped.replaceAll(quote, `\\${quote}`) + quote;
  };

  /** Digits as Python rounds them: a number half-way between two goes to the even one. */
  const rounded = (value, digits, method) => {
    const [mantissa, exponent = ""] = value[method](digits).split("e");
    const [exact] = value[method](100).split("e");
    const point = exact.indexOf(".");
    const cut = exact.slice(0, digits ? point + digits + 1 : point);
    const half = /^\.?50*$/.test(exact.slice(cut.length)) && "02468".includes(cut.at(-1));
    return [half ? cut : mantissa, exponent];
  };

  /** A number in Python's format "z.3f" (no minus before a zero) or ".6g". */
  const format = (value, spec) => {
    const [, digits, kind] = /^z?\.(\d+)([fg])$/.exec(spec);
    if (kind === "f") return rounded(value, +digits, "toFixed")[0].replace(/^-(?=[0.]+$)/, "");
    if (value === 0) return "0";
    const [mantissa, exponent] = rounded(value, digits - 1, "toExponential");
    const size = Number(exponent);
    const short = text => (text.includes(".") ? text.replace(/\.?0+$/, "") : text);
    if (size < -4 || size >= digits) {
      return `${short(mantissa)}e${size < 0 ? "-" : "+"}${String(Math.abs(size)).padStart(2, "0")}`;
    }
    return short(rounded(value, digits - 1 - size, "toFixed")[0]);
  };

  const wrong = (words, mistake = "") => ({right: false, words, mistake});
  const right = words => ({right: true, words, mistake: ""});

  /** A word as it is compared. */
  const plain = word => word.toLowerCase().replaceAll("++", "pp").replace(/[^a-z0-9]/g, "");

  const judgeWords = (table, answer) => {
    const given = {};
    for (const [i, key] of Object.keys(table.right).entries()) {
      const said = table.inOrder ? answer[i] : answer[key];
      const small = plain(said);
      const spelled = [small, small.replace(/(il|(incremental)?(learning|training)?)$/, "")];
      given[key] = spelled.map(word => word && table.allowed.find(one => plain(one) === word)).find(Boolean);
      if (given[key] === undefined) {
        const what = table.what.replace("{}", key);
        return wrong(`${what} is ${quoted(said)}; allowed: ${table.allowed.map(quoted).join(", ")}.`);
      }
    }
    const accepted = key => table.right[key].includes(given[key]);
    if (Object.keys(given).every(accepted)) return right(table.praise);
    const chosen = ([key, word]) => (word === null ? !accepted(key) : given[key] === word);
    const {hint, name} = table.mistakes.find(({where}) => where.some(one => Object.entries(one).every(chosen)));
    return wrong(hint, name);
  };

  const holds = (value, {relation, number, tolerance}) => {
    if (relation === "near") return Math.abs(value - number) <= tolerance + tolerance * Math.abs(number);
    if (relation === "unknown") return isNaN(value);
    return relation === "above" ? value > number : value < number;
  };

  /** What Python calls an answer with a text in it. */
  const kind = answer => {
    if (typeof answer === "string") return "str";
    const types = answer.flat(2).map(one => (typeof one === "string" ? "str" : Number.isInteger(one) ? "int" : "float"));
    return `${Array.isArray(answer[0]) ? "list of lists" : "list"} of ${[...new Set(types)].sort().join(" and ")}`;
  };

  const judgeNumbers = (table, answer) => {
    const entries = [answer].flat(2).map(entry => entry ?? NaN); // JSON has no NaN
    if (entries.some(entry => typeof entry === "string")) {
      return wrong(`${table.what} is a ${kind(answer)}; numbers are asked for.`);
    }
    if (entries.some(entry => !Number.isFinite(entry) && !(isNaN(entry) && table.gaps))) {
      const why = "A division by zero, or an entry that was never measured?";
      return wrong(`${table.what} holds NaN or infinity. ${why}`);
    }
    const largest = rows => {
      const sums = rows.map(row =>
        entries.reduce((sum, entry, i) => (row[i] ? sum + row[i] * entry : sum), row.at(-1) + 0));
      const known = sums.filter(sum => !isNaN(sum));
      return known.length ? Math.max(...known) : NaN;
    };
    const values = Object.fromEntries(Object.entries(table.quantities).map(([name, rows]) => [name, largest(rows)]));
    const found = table.cases.find(({when}) => when.every(condition => holds(values[condition.quantity], condition)));
    const words = found.words.replace(/\{(\w+):([^}]*)\}/g, (_, name, spec) => format(values[name], spec));
    return found.right ? right(words) : wrong(words, found.mistake);
  };

  /** What `minicl.check` says of an answer: {right, words, mistake}. */
  const judge = (table, answer) => (table.kind === "words" ? judgeWords : judgeNumbers)(table, answer);

  /** What stands in a field, as a number; what is none stays a text. */
  const read = text => {
    const plain = text.trim().replaceAll("\u2212", "-").replace(",", ".");
    const decimal = "[+-]?(?:\\d+\\.?\\d*|\\.\\d+)(?:e[+-]?\\d+)?";
    const [, above, below] = new RegExp(`^(${decimal})(?:\\s*/\\s*(${decimal}))?$`, "i").exec(plain) ?? [];
    if (above !== undefined) return below === undefined ? Number(above) : Number(above) / Number(below);
    return /^nan$/i.test(plain) ? NaN : text.trim();
  };

  // ---- what is kept ----------------------------------------------------------------------------------------------

  const KEY = "minicl-answers";
  let memory = {}; // what is known where the browser keeps nothing
  let kept = true;

  /** All answers so far, on whatever page: the name of an exercise -> {answer, right}. */
  const recall = () => {
    if (!kept) return memory;
    try {
      const stored = Object.entries(JSON.parse(localStorage.getItem(KEY) ?? "{}"));
      return Object.fromEntries(stored.filter(([, one]) => one?.answer !== undefined));
    } catch {
      return memory;
    }
  };

  const keep = all => {
    memory = all;
    try {
      localStorage.setItem(KEY, JSON.stringify(all));
      kept = true;
    } catch {
      kept = false;
    }
  };

  // ---- the page --------------------------------------------------------------------------------------------------

  const element = (name, properties = {}, ...children) => {
    const {data = {}, ...rest} = properties;
    const made = Object.assign(document.createElement(name), rest);
    for (const [key, value] of Object.entries(data)) made.setAttribute(key, value);
    made.append(...children);
    return made;
  };

  /** The fields of a form: what to show, what they hold as an answer, and how to fill them with one. */
  const fieldsOf = (table, name) => {
    if (table.kind === "words") {
      const keys = Object.keys(table.right);
      const selects = keys.map((key, i) =>
        element("select", {id: `check-${name}-${i}`}, new Option("", ""), ...table.allowed.map(word => new Option(word))));
      const rows = keys.map((key, i) =>
        element("div", {className: "check-row"}, element("label", {htmlFor: selects[i].id, textContent: key}), selects[i]));
      const said = () => selects.map(select => select.value);
      return {
        shown: rows,
        inputs: selects,
        answer: () => (table.inOrder ? said() : Object.fromEntries(said().map((word, i) => [keys[i], word]))),
        fill: given => selects.forEach((select, i) => { select.value = table.inOrder ? given[i] : given[keys[i]]; }),
      };
    }
    const [rows = 1, columns = 1] = table.shape.length > 1 ? table.shape : [1, table.shape[0]];
    const called = i => {
      if (!table.shape.length) return "Your answer";
      return table.shape.length > 1 ? `Row ${Math.floor(i / columns) + 1}, column ${(i % columns) + 1}` : `Number ${i + 1}`;
    };
    const inputs = Array.from({length: rows * columns}, (_, i) =>
      element("input", {type: "text", inputMode: "text", autocomplete: "off", spellcheck: false,
        data: {"aria-label": called(i), "aria-describedby": `check-${name}-help`}}));
    const grid = element("div", {className: "check-grid"}, ...inputs);
    grid.style.setProperty("--columns", columns);
    const unmeasured = table.gaps ? ", or NaN where nothing was measured" : "";
    const help = element("p", {className: "check-help", id: `check-${name}-help`,
      textContent: `Write a number as -0.25 or 1/4${unmeasured}.`});
    return {
      shown: [grid, help],
      inputs,
      answer: () => {
        const all = inputs.map(input => read(input.value));
        if (table.shape.length < 2) return table.shape.length ? all : all[0];
        return Array.from({length: rows}, (_, i) => all.slice(i * columns, (i + 1) * columns));
      },
      fill: given => [given].flat(2).forEach((entry, i) => { inputs[i].value = entry ?? "NaN"; }),
    };
  };

  /** Show a verdict, {right, words}; or only words, of an answer that is none yet. */
  const show = (form, verdict) => {
    form.dataset.state = verdict.right === undefined ? "open" : verdict.right ? "right" : "wrong";
    form.querySelector("output").textContent =
      verdict.right === undefined ? verdict.words : `${verdict.right ? "Right." : "Not yet."} ${verdict.words}`.trim();
  };

  /** Fill a form; `after` is called when something was checked. Returns what brings back the answer that was kept. */
  const build = (form, after) => {
    const name = form.dataset.exercise;
    const table = JSON.parse(form.querySelector("script").textContent);
    const fields = fieldsOf(table, name);
    const heading = element("legend", {textContent: "Answer here"});
    const button = element("button", {type: "submit", textContent: "Check"});
    const said = element("output");
    form.append(element("fieldset", {}, heading, ...fields.shown, element("div", {className: "check-row"}, button), said));
    form.noValidate = true;
    form.addEventListener("submit", event => {
      event.preventDefault();
      const empty = fields.inputs.find(input => !input.value.trim());
      if (empty) {
        show(form, {words: fields.inputs.length > 1 ? "Something is still empty." : "There is no answer yet."});
        empty.focus();
        return;
      }
      const answer = fields.answer();
      const verdict = judge(table, answer);
      show(form, verdict);
      if (table.kind === "numbers") {
        for (const input of fields.inputs) input.setAttribute("aria-invalid", typeof read(input.value) === "string");
      }
      keep({...recall(), [name]: {answer, right: verdict.right}});
      after();
    });
    form.addEventListener("input", () => {
      show(form, {words: ""});
      fields.inputs.forEach(input => input.removeAttribute("aria-invalid"));
    });
    return () => {
      form.reset();
      show(form, {words: ""});
      const {answer} = recall()[name] ?? {};
      if (answer === undefined) return;
      try {
        fields.fill(answer);
      } catch {
        form.reset(); // it answers an older question
      }
      if (fields.inputs.every(input => input.value.trim())) show(form, judge(table, fields.answer()));
    };
  };

  /** Below the last form of a page: how much is right in the whole book, the file for a teacher, and a way to forget. */
  const summary = (total, restore) => {
    const said = element("p");
    const save = element("button", {type: "button", textContent: "Save my answers as a file"});
    const forget = element("button", {type: "button", textContent: "Delete my answers"});
    const update = () => {
      const all = recall();
      const count = Object.values(all).filter(one => one.right).length;
      said.textContent = `Of the ${total} exercises that the pages of the book check themselves, you have ${count} right.`
        + (kept ? "" : " Your browser keeps nothing: save your answers before you leave this page.");
      save.disabled = forget.disabled = !Object.keys(all).length;
    };
    save.addEventListener("click", () => {
      const answers = Object.fromEntries(Object.entries(recall()).map(([name, {answer}]) => [name, answer]));
      const file = new Blob([`${JSON.stringify({answers}, null, 1)}\n`], {type: "application/json"});
      const link = element("a", {href: URL.createObjectURL(file), download: "answers.json"});
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 10000);
    });
    forget.addEventListener("click", () => {
      if (!confirm("Delete all answers that this browser keeps of the book?")) return;
      keep({});
      restore();
      update();
      said.tabIndex = -1; // the buttons are off now: the keyboard must be somewhere
      said.focus();
    });
    addEventListener("storage", update); // another page of the book is open, too
    const box = element("div", {className: "check-summary"}, said, element("div", {className: "check-row"}, save, forget));
    return {box, update};
  };

  const start = () => {
    const forms = [...document.querySelectorAll("form.check")];
    if (!forms.length) return;
    const restorers = [];
    const restore = () => restorers.forEach(one => one());
    const {box, update} = summary(forms[0].dataset.total, restore);
    restorers.push(...forms.map(form => build(form, update)));
    forms.at(-1).after(box);
    restore();
    update();
  };

  return {judge, read, start};
})();

if (typeof document !== "undefined") checks.start();
