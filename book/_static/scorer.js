/* Search: who looks for a word wants the chapter on it, who types code (a dot, an underscore, a bracket) its entry. */
var Scorer = {
  score: ([docname, title, , , score]) => {
    const query = new URLSearchParams(location.search).get("q") ?? "";
    if (docname.startsWith("book/api")) return /[._(]/.test(query) ? score : score - 1000;
    const word = query.trim().toLowerCase().replace(/[^\p{L}\p{N}]+/gu, "_");
    return docname === `book/${word}` && !title.includes(" > ") ? score + 1000 : score;
  },
  // the rest is Sphinx's own
  objNameMatch: 11,
  objPartialMatch: 6,
  objPrio: {0: 15, 1: 5, 2: -5},
  objPrioDefault: 0,
  title: 15,
  partialTitle: 7,
  term: 5,
  partialTerm: 2,
};

/* A page that is read from a folder may fetch nothing: there the excerpts come from a script that the build wrote. */
if (location.protocol === "file:") {
  const root = document.documentElement.dataset.content_root ?? "";
  const texts = new Promise(done => {
    const script = Object.assign(document.createElement("script"), {src: `${root}_static/excerpts.js`});
    script.onload = () => done(window.EXCERPTS);
    script.onerror = () => done({});
    document.head.append(script);
  });
  const fetched = window.fetch;
  window.fetch = async (address, ...rest) => {
    const name = String(address).replace(/^(\.\/)+/, "").replace(/\.html$/, "");
    const text = (await texts)[name];
    if (text === undefined) return fetched(address, ...rest);
    const page = document.createElement("div");
    page.setAttribute("role", "main");
    page.textContent = text;
    return new Response(page.outerHTML);
  };
}
