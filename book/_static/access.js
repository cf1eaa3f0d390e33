/* What scrolls sideways can be reached by the keyboard, and fades where it goes on: equations, tables and figures wider
   than a phone. On paper, what is folded is open. */
(() => {
  const BOXES = [
    "mjx-container",
    "div.math",
    "div.cell_output figure",
    "div.cell_output .text_html",
    "div.cell_output",
    ".pst-scrollable-table-container",
    ".table-responsive",
  ].join();

  const fade = box => {
    const left = box.scrollWidth - box.clientWidth - Math.abs(box.scrollLeft);
    box.classList.toggle("goes-on", left > 2 && box.clientWidth > 0);
  };

  const mark = () => {
    for (const image of document.querySelectorAll("div.cell_output > figure > img")) {
      if (image.naturalWidth) image.parentElement.style.setProperty("--natural-width", `${image.naturalWidth}px`);
    }
    for (const box of document.querySelectorAll(BOXES)) {
      const scrolls = ["auto", "scroll"].includes(getComputedStyle(box).overflowX);
      if (scrolls && box.scrollWidth > box.clientWidth && box.clientWidth > 0) {
        box.tabIndex = 0;
        fade(box);
        if (!box.dataset.fades) box.addEventListener("scroll", () => fade(box), {passive: true});
        box.dataset.fades = "yes";
      } else {
        box.removeAttribute("tabindex");
        box.classList.remove("goes-on");
      }
    }
  };
  addEventListener("load", async () => {
    await window.MathJax?.startup?.promise;
    mark();
  });
  addEventListener("resize", mark);
  document.addEventListener("toggle", mark, true);

  const opened = new Set();
  addEventListener("beforeprint", () => {
    for (const fold of document.querySelectorAll("article details:not([open])")) {
      fold.open = true;
      opened.add(fold);
    }
    for (const button of document.querySelectorAll("article button.toggle-button-hidden")) {
      button.click();
      opened.add(button);
    }
  });
  addEventListener("afterprint", () => {
    for (const one of opened) {
      if (one.tagName === "DETAILS") one.open = false;
      else one.click();
    }
    opened.clear();
  });
})();
