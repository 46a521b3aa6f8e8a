// Shared by the widgets: elements, controls, pictures that fit their width, axes, colours, and sentences that are read aloud.

const SVG = "http://www.w3.org/2000/svg";

// ------------------------------------------------------------------------------------------------ elements

function build(node, attributes, children) {
    for (const [name, value] of Object.entries(attributes)) {
        if (value === null || value === undefined || value === false) continue;
        if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
        else if (name === "html") node.innerHTML = value;
        else node.setAttribute(name, value === true ? "" : value);
    }
    node.append(...children.flat().filter(child => child !== null));
    return node;
}

export const html = (tag, attributes = {}, ...children) => build(document.createElement(tag), attributes, children);
export const svg = (tag, attributes = {}, ...children) => build(document.createElementNS(SVG, tag), attributes, children);

/** The parts of a widget: a place for pictures, one for controls, and `say`, which shows a sentence and has it read aloud. */
export function stage(root, name) {
    const pictures = html("div", { class: "widget-pictures" }), controls = html("div", { class: "widget-controls" });
    const shown = html("p", { class: "widget-says" }), aloud = html("p", { class: "widget-aloud", role: "status" });
    root.append(pictures, controls, shown, aloud);
    root.setAttribute("role", "group");
    root.setAttribute("aria-label", name);
    let waiting;
    function say(sentence) {
        shown.innerHTML = sentence;
        clearTimeout(waiting);                                                     // not at every pixel of a slider
        waiting = setTimeout(() => { aloud.textContent = shown.textContent; }, 600);
    }
    return { pictures, controls, say };
}

// ------------------------------------------------------------------------------------------------ controls

/** A slider with its name and value. `log` spaces it by powers of ten; `change` is called with the new value. */
export function slider(parent, { label, min, max, step, value, log = false, show = number, change }) {
    const from = position => (log ? Number((10 ** position).toPrecision(3)) : position);
    const to = value => (log ? Math.log10(value) : value);
    const input = html("input", { type: "range", min: to(min), max: to(max), step, value: to(value) });
    const output = html("output");
    const refresh = () => {
        output.innerHTML = show(from(input.valueAsNumber));
        input.setAttribute("aria-valuetext", output.textContent);
    };
    input.addEventListener("input", () => { refresh(); change(from(input.valueAsNumber)); });
    const element = html("label", { class: "widget-slider" }, html("span", { html: label }), input, output);
    parent.append(element);
    refresh();
    return {
        element, input, refresh,
        get value() { return from(input.valueAsNumber); },
        set value(value) { input.value = to(value); refresh(); },
        set max(most) { input.max = to(most); refresh(); },
    };
}

let groups = 0;

/** One of several options, as radio buttons; `options` is a list of [value, label]. */
export function choice(parent, { label, options, value, change }) {
    const name = `widget-choice-${++groups}`;
    let chosen = value;
    const buttons = options.map(([option, text]) => html("label", {},
        html("input", { type: "radio", name, checked: option === value, onchange: () => { chosen = option; change(option); } }),
        html("span", { html: text })));
    parent.append(html("fieldset", { class: "widget-choice" }, html("legend", { html: label }), html("div", {}, buttons)));
    return { get value() { return chosen; } };
}

/** Steps from 0 to `most`: a slider, with buttons that go back, forward, and on by themselves. */
export function stepper(parent, { label, most, value = 0, show, change, pace = 900 }) {
    let timer = null;
    const button = (name, text, act) => html("button", { type: "button", "aria-label": name, title: name, onclick: act }, text);
    const go = step => {
        steps.value = Math.max(0, Math.min(steps.input.max, step));
        change(steps.value);
    };
    const stop = () => {
        clearInterval(timer);
        timer = null;
        play.textContent = "\u25B6";
        play.setAttribute("aria-label", "play");
        play.title = "play";
    };
    const play = button("play", "\u25B6", () => {
        if (timer !== null) return stop();
        play.textContent = "\u275A\u275A";
        play.setAttribute("aria-label", "pause");
        play.title = "pause";
        if (steps.value >= steps.input.max) go(0);
        timer = setInterval(() => { if (steps.value >= steps.input.max) stop(); else go(steps.value + 1); }, pace);
    });
    const back = button("one step back", "\u2039", () => { stop(); go(steps.value - 1); });
    const next = button("one step forward", "\u203A", () => { stop(); go(steps.value + 1); });
    const row = html("div", { class: "widget-stepper" });
    parent.append(row);
    const steps = slider(row, { label, min: 0, max: most, step: 1, value, show, change: step => { stop(); change(step); } });
    row.append(html("div", { class: "widget-buttons" }, back, play, next));
    return {
        get value() { return steps.value; },
        restart(most, value = 0) { stop(); steps.max = most; steps.value = Math.min(value, most); },
        refresh: steps.refresh,
    };
}

// ------------------------------------------------------------------------------------------------ pictures

/** A picture that is drawn again when its width changes, so that its letters keep their size: draw(svg, width) returns its height. */
export function panel(parent, { label, grow = 1, min = 260 }, draw) {
    const picture = svg("svg", { role: "img", "aria-label": label });
    const box = html("div", { class: "widget-panel", style: `flex: ${grow} 1 ${min}px` }, picture);
    parent.append(box);
    let width = 0;
    function redraw() {
        if (!width) return;
        picture.replaceChildren();
        const height = draw(picture, width);
        picture.setAttribute("viewBox", `0 0 ${width} ${height}`);
        picture.setAttribute("width", width);
        picture.setAttribute("height", height);
    }
    new ResizeObserver(([entry]) => {
        const now = Math.floor(entry.contentRect.width);
        if (now && now !== width) { width = now; redraw(); }
    }).observe(box);
    return { redraw, box, picture, describe: text => picture.setAttribute("aria-label", text) };
}

/** Axes in a picture: ticks, names, and the functions x and y from values to pixels. */
export function axes(picture, { left = 44, top = 10, width, height, x, y, xname = "", yname = "", xticks, yticks, xshow = number, yshow = number }) {
    const px = value => left + ((value - x[0]) / (x[1] - x[0])) * width;
    const py = value => top + height - ((value - y[0]) / (y[1] - y[0])) * height;
    for (const tick of yticks ?? ticks(y, Math.max(2, height / 45))) {
        picture.append(svg("line", { class: "rule", x1: left, x2: left + width, y1: py(tick), y2: py(tick) }));
        picture.append(svg("text", { class: "tick", x: left - 6, y: py(tick) + 4, "text-anchor": "end" }, yshow(tick)));
    }
    for (const tick of xticks ?? ticks(x, Math.max(2, width / 80)))
        picture.append(svg("text", { class: "tick", x: px(tick), y: top + height + 16, "text-anchor": "middle" }, xshow(tick)));
    if (xname) picture.append(svg("text", { class: "name", x: left + width, y: top + height + 33, "text-anchor": "end" }, xname));
    if (yname) picture.append(svg("text", { class: "name", x: left, y: top - 8 }, yname));
    return { x: px, y: py };
}

/** Round numbers between the two ends of an axis. */
export function ticks([low, high], most) {
    const rough = (high - low) / most, power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map(factor => factor * power).find(step => step >= rough * 0.999);
    const found = [];
    for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) found.push(i * step);
    return found;
}

/** The `d` of a line through points. */
export const path = points => points.map(([x, y], i) => `${i ? "L" : "M"}${x.toFixed(2)} ${y.toFixed(2)}`).join("");

/** A line through points, of a class of colour. */
export const line = (points, kind) => svg("path", { class: `line ${kind}`, d: path(points) });

/** The colour of a number on a scale of -most ... most: orange, background, blue; never so strong that letters drown in it. */
export function heat(value, most) {
    const share = Math.min(1, Math.abs(value) / most) ** 0.8, colour = value < 0 ? "b" : "a";
    return `color-mix(in oklab, var(--widget-${colour}) calc(${share.toFixed(3)} * var(--widget-heat)), var(--pst-color-background))`;
}

// ------------------------------------------------------------------------------------------------ numbers

/** A number for people: a true minus sign, at most `digits` digits after the point, groups of three. */
export function number(value, digits = 2) {
    if (value === Infinity || value === -Infinity) return value < 0 ? "\u2212\u221E" : "\u221E";
    const shown = Math.abs(value).toLocaleString("en-US", { maximumFractionDigits: digits });
    return value < 0 && Number(shown.replace(/,/g, "")) !== 0 ? `\u2212${shown}` : shown;
}

/** The same with all its digits, for columns; `sign` marks positive numbers too. */
export function fixed(value, digits = 2, sign = false) {
    if (!Number.isFinite(value)) return number(value);
    const shown = Math.abs(value).toFixed(digits), zero = Number(shown) === 0;
    return `${value < 0 && !zero ? "\u2212" : sign && !zero ? "+" : ""}${shown}`;
}
