// Starts the widgets of a page: <div class="widget" data-widget="softmax"> is drawn by softmax.js, from the JSON inside.
// Until a widget has been drawn, and wherever scripts do not run, the picture of the same cell is shown instead.

async function start(root) {
    const data = JSON.parse(root.querySelector("script").textContent);
    const { draw } = await import(`./${root.dataset.widget}.js`);
    draw(root, data);
    root.dataset.drawn = "";
    for (const output of root.closest(".cell_output")?.children ?? []) output.hidden = !output.contains(root);
    root.closest(".text_html")?.classList.remove("text_html");                     // the theme gives these a light ground in the dark
    root.closest(".cell")?.nextElementSibling?.classList.add("drawn");             // what to try, in words
}

for (const root of document.querySelectorAll(".widget[data-widget]")) start(root);
