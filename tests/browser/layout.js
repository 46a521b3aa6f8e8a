// What is wrong with the layout of a page: one sentence for each element.
() => {
    const found = [], root = document.documentElement, width = root.clientWidth;
    const name = element => {
        const classes = typeof element.className === "string" ? element.className.trim().replace(/\s+/g, ".") : "";
        return `${element.tagName.toLowerCase()}.${classes} (${element.textContent.trim().slice(0, 40)})`;
    };
    const style = element => getComputedStyle(element);
    const hasOwnBox = element => {  // an ancestor that scrolls sideways
        for (let up = element.parentElement; up && up !== document.body; up = up.parentElement)
            if (["auto", "scroll"].includes(style(up).overflowX)) return true;
        return false;
    };

    window.scrollTo(10000, 0);
    if (window.scrollX > 0 || root.scrollWidth > width + 1)
        found.push(`the page scrolls sideways, to ${root.scrollWidth} of ${width} px`);
    window.scrollTo(0, 0);

    if (width >= 1000)
        for (const code of document.querySelectorAll("pre"))
            if (code.scrollWidth > code.clientWidth + 1)
                found.push(`code is ${code.scrollWidth} px wide, and its box ${code.clientWidth}: ${name(code)}`);

    for (const element of document.querySelectorAll("main *")) {
        const {left, right, width: across, height} = element.getBoundingClientRect();
        if (across <= 1 || height <= 1 || (right <= width + 1 && left >= -1)) continue;
        if (style(element).visibility !== "visible" || element.closest("mjx-assistive-mml, svg svg, svg *")) continue;
        const picture = element.matches("img, canvas, video, iframe, svg") && !element.closest("mjx-container");
        if (picture || !hasOwnBox(element))
            found.push(`${picture ? "a picture" : "this"} is cut: ${name(element)} ends at ${Math.round(right)} of ${width} px`);
    }
    return found;
}
