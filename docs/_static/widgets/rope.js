// RoPE: the pairs of a query and a key turn with their positions; the score depends on the distance alone.

import { axes, choice, fixed, html, line, number, panel, slider, stage, svg } from "./shared.js";

/** Radians per token of every pair: theta^(-2j/D). */
export const frequencies = (D, theta) => Array.from({ length: D / 2 }, (_, j) => theta ** ((-2 * j) / D));

/** What pair j adds to q · k at a distance d: a[j] cos(d w) + b[j] sin(d w). q and k hold the pairs' first halves, then the second. */
export function coefficients(q, k) {
    const half = q.length / 2;
    return Array.from({ length: half }, (_, j) => [q[j] * k[j] + q[j + half] * k[j + half], q[j] * k[j + half] - q[j + half] * k[j]]);
}

/** The part of every pair in the score of a query and a key at a distance. */
export const scores = (q, k, theta, distance) => {
    const w = frequencies(q.length, theta);
    return coefficients(q, k).map(([a, b], j) => a * Math.cos(distance * w[j]) + b * Math.sin(distance * w[j]));
};

/** The score at whole distances, as [distance, lowest, highest] for each of `n` columns of a picture. */
export function envelope(q, k, theta, on, far, n) {
    const w = frequencies(q.length, theta), c = coefficients(q, k), found = [];
    for (let column = 0; column < n; column++) {
        const from = Math.floor((column * far) / n), to = Math.max(from + 1, Math.floor(((column + 1) * far) / n));
        const stride = Math.max(1, Math.floor((to - from) / 24));
        let low = Infinity, high = -Infinity;
        for (let d = from; d < to; d += stride) {
            let score = 0;
            for (let j = 0; j < w.length; j++) if (on[j]) score += c[j][0] * Math.cos(d * w[j]) + c[j][1] * Math.sin(d * w[j]);
            low = Math.min(low, score);
            high = Math.max(high, score);
        }
        found.push([from, low, high]);
    }
    return found;
}

export function draw(root, { q: randomQ, k: randomK }) {
    const D = randomQ.length, pairs = D / 2, on = Array(pairs).fill(true);
    const equal = Array.from({ length: D }, (_, i) => Number(i < pairs));
    let q = equal, k = equal, position = 12, distance = 4, theta = 10000, far = 64;
    const { pictures, controls, say } = stage(root, "RoPE: the pairs of a query and a key, and their score");

    const dials = html("div", { class: "rope-dials", style: "flex: 1 1 300px" }), plotBox = html("div", { style: "flex: 1.3 1 300px; min-width: 0" });
    pictures.append(dials, plotBox);
    const buttons = on.map((_, j) => {
        const button = html("button", { type: "button", onclick: () => { on[j] = !on[j]; update(); } });
        dials.append(button);
        return button;
    });
    const plot = panel(plotBox, { label: "" }, (picture, width) => {
        const top = 26, height = 230, wide = width - 52, most = Math.max(1, coefficients(q, k).reduce((sum, [a, b], j) => sum + on[j] * Math.hypot(a, b), 0));
        const { x, y } = axes(picture, { top, width: wide, height, x: [0, far], y: [-most, most], xname: "distance t − s", yname: "q · k after the rotation" });
        picture.append(svg("line", { class: "mark", x1: x(0), x2: x(far), y1: y(0), y2: y(0) }));
        if (on.filter(Boolean).length > 1 && far <= 256) {
            for (let j = 0; j < pairs; j++) {
                if (!on[j]) continue;
                const alone = on.map((_, i) => i === j);
                picture.append(line(envelope(q, k, theta, alone, far, far).map(([d, low]) => [x(d), y(low)]), "pale"));
            }
        }
        const columns = Math.min(far, Math.floor(wide)), band = envelope(q, k, theta, on, far, columns);
        const outline = [...band.map(([d, , high]) => [x(d), y(high)]), ...band.reverse().map(([d, low]) => [x(d), y(low)])];
        picture.append(line(outline, "a rope-band"));
        if (distance <= far) picture.append(svg("circle", { class: "fill-b", cx: x(distance), cy: y(total()), r: 5 }));
        return top + height + 40;
    });

    const shown = slider(controls, { label: "position <i>t</i> of the query", min: 0, max: 200, step: 1, value: position, change: v => { position = v; update(); } });
    slider(controls, { label: "distance <i>t</i> − <i>s</i>", min: 0, max: 64, step: 1, value: distance, change: v => { distance = v; update(); } });
    slider(controls, { label: "<i>θ</i>", min: 10, max: 1e6, step: 0.05, value: theta, log: true, show: v => number(v, 0), change: v => { theta = v; update(); } });
    choice(controls, {
        label: "<i>q</i> and <i>k</i>", value: "equal", options: [["equal", "equal"], ["random", "random"]],
        change: v => { [q, k] = v === "equal" ? [equal, equal] : [randomQ, randomK]; update(); },
    });
    choice(controls, {
        label: "distances up to", value: far, options: [64, 1024, 16384].map(n => [n, number(n)]), change: v => { far = v; update(); },
    });

    const total = () => scores(q, k, theta, distance).reduce((sum, score, j) => sum + on[j] * score, 0);

    function hand(vector, j, turns, kind, length) {
        const angle = Math.atan2(vector[j + pairs], vector[j]) + turns;
        const x = length * Math.cos(angle), y = -length * Math.sin(angle);
        return [svg("line", { class: `rope-hand ${kind}`, x1: 0, y1: 0, x2: x, y2: y }), svg("circle", { class: `fill-${kind}`, cx: x, cy: y, r: 3 })];
    }

    function update() {
        const w = frequencies(D, theta), parts = scores(q, k, theta, distance);
        buttons.forEach((button, j) => {
            const turn = (2 * Math.PI) / w[j], tokens = turn < 100 ? number(turn, 1) : number(Number(turn.toPrecision(2)), 0);
            button.setAttribute("aria-pressed", on[j]);
            button.setAttribute("aria-label", `pair ${j}: a turn in ${tokens} tokens, adds ${fixed(parts[j], 2)}`);
            button.replaceChildren(
                svg("svg", { viewBox: "-30 -30 60 60", "aria-hidden": "true" }, svg("circle", { class: "rope-dial", r: 27 }),
                    ...hand(k, j, (position - distance) * w[j], "b", 24), ...hand(q, j, position * w[j], "a", 17)),
                html("span", {}, fixed(parts[j], 2, true)), html("small", {}, tokens));
        });
        plot.describe(`The score against the distance, from 0 to ${far}; ${fixed(total(), 2)} at distance ${distance}`);
        plot.redraw();
        const slowest = (2 * Math.PI) / w[pairs - 1];
        say(`The <span class="a">query at ${position}</span> and the <span class="b">key at ${position - distance}</span> have the score `
            + `${fixed(total(), 2)}. The slowest pair needs ${number(Number(slowest.toPrecision(2)), 0)} tokens for a full turn.`);
    }
    shown.refresh();
    update();
}
