// Softmax: logits and a temperature become probabilities; a gradient passes back through the Jacobian.

import { fixed, heat, html, number, slider, stage } from "./shared.js";

/** p = softmax(x / temperature), with the maximum subtracted. */
export function softmax(x, temperature = 1) {
    const top = Math.max(...x), e = x.map(x => Math.exp((x - top) / temperature));
    const sum = e.reduce((a, b) => a + b, 0);
    return e.map(e => e / sum);
}

/** The derivative of p[i] by x[j] in row i and column j: p[i] (delta - p[j]) / temperature. */
export const jacobian = (p, temperature = 1) => p.map((pi, i) => p.map((pj, j) => (pi * ((i === j) - pj)) / temperature));

/** The gradient of x, from that of p. */
export function backward(dout, p, temperature = 1) {
    const mean = dout.reduce((sum, d, i) => sum + d * p[i], 0);
    return p.map((p, i) => (p * (dout[i] - mean)) / temperature);
}

export function draw(root, { words, x: start }) {
    const x = [...start], dout = x.map((_, i) => Number(i === 1)), n = x.length;
    let temperature = 1;
    const { pictures, controls, say } = stage(root, "Softmax: logits, temperature, probabilities and gradients");

    const rows = html("div", { class: "softmax-rows", style: "flex: 1 1 300px" });
    const bars = words.map((word, i) => {
        const bar = html("i"), share = html("span");
        slider(rows, { label: word, min: -6, max: 6, step: 0.1, value: x[i], show: v => fixed(v, 1), change: v => { x[i] = v; update(); } });
        rows.append(html("div", { class: "softmax-bar" }, bar, share));
        return { bar, share };
    });
    pictures.append(rows);

    const cells = x.map(() => x.map(() => html("td"))), results = x.map(() => html("td", { class: "softmax-dx" }));
    const buttons = words.map((word, i) => html("button", { type: "button", onclick: () => { dout[i] = dout[i] === 1 ? -1 : dout[i] + 1; update(); } }));
    const head = text => html("th", { scope: "col", html: text });
    pictures.append(html("div", { style: "flex: 1 1 330px", class: "softmax-jacobian" }, html("table", {},
        html("caption", { html: "&part;<i>p<sub>i</sub></i>/&part;<i>x<sub>j</sub></i>, times the gradient of <i>p</i>, is the gradient of <i>x</i>" }),
        html("thead", {}, html("tr", {}, html("td"), words.map(head), head("d<i>p</i>"), head("d<i>x</i>"))),
        html("tbody", {}, words.map((word, j) => html("tr", {}, html("th", { scope: "row" }, word), cells[j], html("td", {}, buttons[j]), results[j]))))));

    slider(controls, { label: "temperature <i>T</i>", min: 0.1, max: 10, step: 0.02, value: 1, log: true, change: v => { temperature = v; update(); } });

    function paint(cell, value, most, digits) {
        cell.textContent = fixed(value, digits, true);
        cell.style.background = heat(value, most);
    }

    function update() {
        const p = softmax(x, temperature), derivatives = jacobian(p, temperature), dx = backward(dout, p, temperature);
        const most = Math.max(0.25, ...derivatives.flat().map(Math.abs));
        for (let i = 0; i < n; i++) {
            bars[i].bar.style.width = `${100 * p[i]}%`;
            bars[i].share.textContent = `${fixed(100 * p[i], 1)} %`;
            cells[i].forEach((cell, j) => paint(cell, derivatives[i][j], most, 2));
            buttons[i].textContent = fixed(dout[i], 0, true);
            buttons[i].setAttribute("aria-label", `gradient of p of ${words[i]}: ${fixed(dout[i], 0)}; press to change`);
            paint(results[i], dx[i], most, 3);
        }
        const first = p.indexOf(Math.max(...p)), rise = dx.indexOf(Math.max(...dx));
        const gradient = Math.max(...dx.map(Math.abs)) < 5e-4 ? "The gradient of <i>x</i> vanishes."
            : `The largest gradient is that of “${words[rise]}”, ${fixed(dx[rise], 3, true)}; all five add up to 0.`;
        say(`“${words[first]}” has ${number(100 * p[first], 1)} % of the probability. ${gradient}`);
    }
    update();
}
