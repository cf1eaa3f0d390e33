/* What scrolls sideways can be reached by the keyboard: equations and figures wider than a phone. */
(() => {
  const mark = () => {
    for (const image of document.querySelectorAll("div.cell_output > figure > img")) {
      if (image.naturalWidth) image.parentElement.style.setProperty("--natural-width", `${image.naturalWidth}px`);
    }
    for (const box of document.querySelectorAll("mjx-container, div.math, div.cell_output figure")) {
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
