// AdamW on one parameter: its gradients, the two moments, the step, and the way of the parameter.

import { axes, choice, fixed, line, number, panel, slider, stage, svg } from "./shared.js";

/** Every step of AdamW for a list of gradients, as numllama.optim.adamw computes it: [{g, m, v, mhat, vhat, step, w}]. */
export function adamw(gradients, { lr, beta1, beta2, eps, decay, w }) {
    let m = 0, v = 0;
    return gradients.map((g, i) => {
        const t = i + 1, c = Math.sqrt(1 - beta2 ** t);
        m = beta1 * m + (1 - beta1) * g;
        v = beta2 * v + (1 - beta2) * g * g;
        const step = ((c / (1 - beta1 ** t)) * m) / (Math.sqrt(v) + c * eps);
        w = w - lr * decay * w - lr * step;
        return { g, m, v, mhat: m / (1 - beta1 ** t), vhat: v / (1 - beta2 ** t), step: Number.isNaN(step) ? 0 : step, w };
    });
}

export function draw(root, { sequences, lr, w }) {
    const settings = { lr, beta1: 0.9, beta2: 0.95, eps: 1e-8, decay: 0, w };
    let name = Object.keys(sequences)[0], scale = 1, at = 11;
    const { pictures, controls, say } = stage(root, "AdamW: the moments and steps of one parameter");
    const history = () => adamw(sequences[name].map(g => g * scale), settings);

    function small(label, yname, content, range, yticks) {
        return panel(pictures, { label, min: 300 }, (picture, width) => {
            const all = history(), n = all.length, top = 24, height = width < 360 ? 80 : 110, wide = width - 62;
            const [low, high] = range(all), { x, y } = axes(picture, {
                left: 52, top, width: wide, height, x: [0, n], y: [low, high], yname, xticks: [1, 20, 40, 60].filter(t => t <= n), xshow: t => number(t, 0), yticks,
                yshow: v => (Math.abs(v) >= 1e4 || (v && Math.abs(v) < 0.01) ? v.toExponential(0).replace("-", "\u2212") : number(v, 3)),
            });
            picture.append(svg("line", { class: "mark", x1: x(at + 1), x2: x(at + 1), y1: y(low), y2: y(high) }));
            content(picture, all, x, y, (kind, of) => picture.append(line(all.map((s, i) => [x(i + 1), y(of(s))]), kind)));
            return top + height + 24;
        });
    }
    const around = (most, low = -most) => [low * 1.08 || -1e-12, most * 1.08 || 1e-12];
    const panels = [
        small("The gradient and its running mean", "gradient g, mean m and corrected mean m̂", (picture, all, x, y, curve) => {
            for (const [i, { g }] of all.entries()) picture.append(svg("line", { class: "adamw-stem", x1: x(i + 1), x2: x(i + 1), y1: y(0), y2: y(g) }));
            curve("c thin", s => s.m);
            curve("a", s => s.mhat);
        }, all => {
            const most = Math.max(...all.map(s => Math.max(Math.abs(s.g), Math.abs(s.mhat))));
            return around(most, all.some(s => s.g < 0) ? -most : 0);
        }),
        small("The root of the running mean of squares", "√v and corrected √v̂", (picture, all, x, y, curve) => {
            curve("c thin", s => Math.sqrt(s.v));
            curve("b", s => Math.sqrt(s.vhat));
        }, all => around(Math.max(...all.map(s => Math.sqrt(s.vhat))), 0)),
        small("The step in units of the learning rate", "the step, in units of the learning rate: m̂ / (√v̂ + ε)", (picture, all, x, y) => {
            const wide = Math.max(2, (x(2) - x(1)) * 0.6);
            for (const [i, { step }] of all.entries())
                picture.append(svg("rect", { class: i === at ? "fill-b" : "fill-a", x: x(i + 1) - wide / 2, width: wide, y: Math.min(y(0), y(step)), height: Math.abs(y(step) - y(0)) }));
        }, all => around(Math.max(1.2, ...all.map(s => Math.abs(s.step)))), [-1, 0, 1]),
        small("The parameter", "the parameter w", (picture, all, x, y, curve) => curve("", s => s.w), all => {
            const values = [w, ...all.map(s => s.w)], low = Math.min(...values), high = Math.max(...values), room = 0.06 * (high - low) + 1e-9;
            return [low - room, high + room];
        }),
    ];

    choice(controls, { label: "gradients", value: name, options: Object.keys(sequences).map(key => [key, key]), change: v => { name = v; update(); } });
    const set = (key, options) => slider(controls, { value: settings[key], ...options, change: v => { settings[key] = v; update(); } });
    slider(controls, { label: "their size", min: 1e-3, max: 1e3, step: 0.1, value: 1, log: true, show: v => number(v, 3), change: v => { scale = v; update(); } });
    set("beta1", { label: "<i>β</i><sub>1</sub>", min: 0, max: 0.99, step: 0.01 });
    set("beta2", { label: "<i>β</i><sub>2</sub>", min: 0, max: 0.999, step: 0.001, show: v => number(v, 3) });
    set("eps", { label: "<i>ε</i>", min: 1e-8, max: 1, step: 0.5, log: true, show: v => (v < 0.01 ? v.toExponential(0).replace("-", "\u2212") : number(v, 2)) });
    set("decay", { label: "weight decay <i>λ</i>", min: 0, max: 2, step: 0.05 });
    slider(controls, { label: "read step", min: 0, max: sequences[name].length - 1, step: 1, value: at, show: v => String(v + 1), change: v => { at = v; update(); } });

    function update() {
        for (const one of panels) one.redraw();
        const s = history()[at], short = v => (v && (Math.abs(v) < 1e-3 || Math.abs(v) >= 1e5) ? v.toExponential(2).replace("-", "\u2212") : number(v, 4));
        say(`Step ${at + 1}: <i>g</i> = ${short(s.g)}, <i>m</i> = ${short(s.m)}, <span class="a"><i>m̂</i> = ${short(s.mhat)}</span>, <i>v</i> = ${short(s.v)}, `
            + `<span class="b">√<i>v̂</i> = ${short(Math.sqrt(s.vhat))}</span>. The parameter moves by ${fixed(-s.step, 3, true)} learning rates`
            + `${settings.decay ? " and decays" : ""}, to ${number(s.w, 4)}.`);
    }
    update();
}
