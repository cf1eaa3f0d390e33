/* What scrolls sideways can be reached by the keyboard: equations wider than a phone. */
(() => {
  const mark = () => {
    for (const box of document.querySelectorAll("mjx-container, div.math")) {
      if (box.scrollWidth > box.clientWidth && box.clientWidth > 0) box.tabIndex = 0;
      else box.removeAttribute("tabindex");
    }
  };
  addEventListener("load", async () => {
    await window.MathJax?.startup?.promise;
    mark();
  });
  addEventListener("resize", mark);
  document.addEventListener("toggle", mark, true);
})();
