// Boxes that scroll sideways can be reached with the keyboard. The theme does this for code, but not for formulas and outputs.
const BOXES = "mjx-container[display], div.math, div.cell_output, div.highlight pre, .pst-scrollable-table-container";

function markBoxes() {
    for (const box of document.querySelectorAll(BOXES)) {
        const scrolls = ["auto", "scroll"].includes(getComputedStyle(box).overflowX) && box.scrollWidth > box.clientWidth;
        if (scrolls) box.tabIndex = 0;
        else if (box.tabIndex === 0) box.removeAttribute("tabindex");
    }
}

window.addEventListener("load", async () => {
    await window.MathJax?.startup?.promise;
    markBoxes();
    window.addEventListener("resize", markBoxes);
    document.addEventListener("toggle", markBoxes, true);  // a folded box was opened
});
