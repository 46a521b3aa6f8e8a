// Flash attention: tiles of a causal score matrix, one after another, with the running maximum, sum and output of every query.

import { choice, fixed, heat, html, panel, stage, stepper, svg } from "./shared.js";

/** The interval of keys, [first, last), that a query sees: up to itself, and not further back than the window. */
export const interval = (t, window) => [window ? Math.max(0, t - window + 1) : 0, t + 1];

/** Scaled scores, query by key. */
export const scoresOf = (q, k) => q.map(q => k.map(k => q.reduce((sum, x, d) => sum + x * k[d], 0) / Math.sqrt(q.length)));

/**
 * Every tile in the order of the algorithm: {t, s, skipped}, and for the visited ones the state of each of its queries:
 * the old and new maximum `m` and `top`, the factor `shrink`, the sum `z`, and `out` so far.
 */
export function visit(q, k, v, size, window) {
    const T = q.length, scores = scoresOf(q, k), steps = [];
    for (let t = 0; t < T; t += size) {
        const m = Array(size).fill(-Infinity), z = Array(size).fill(0), o = m.map(() => v[0].map(() => 0));
        for (let s = 0; s < T; s += size) {
            const step = { t, s, skipped: true, rows: [] };
            steps.push(step);
            for (let i = 0; i < Math.min(size, T - t); i++) {
                const [first, last] = interval(t + i, window), keys = [];
                for (let j = Math.max(first, s); j < Math.min(last, s + size); j++) keys.push(j);
                if (keys.length) step.skipped = false;
                const before = m[i], top = Math.max(m[i], ...keys.map(j => scores[t + i][j]));
                const shrink = before === -Infinity ? 0 : Math.exp(before - top);
                z[i] *= shrink;
                o[i] = o[i].map(x => x * shrink);
                for (const j of keys) {
                    const p = Math.exp(scores[t + i][j] - top);
                    z[i] += p;
                    o[i] = o[i].map((x, d) => x + p * v[j][d]);
                }
                m[i] = top;
                step.rows.push({ query: t + i, m: before, top, shrink, z: z[i], out: o[i].map(x => (z[i] ? x / z[i] : 0)), seen: keys.length });
            }
        }
    }
    return steps;
}

/** Output and log-sum-exp of every query: the last state that its tiles leave. */
export function attention(q, k, v, size, window) {
    const out = [], lse = [];
    for (const step of visit(q, k, v, size, window)) for (const row of step.rows) {
        out[row.query] = row.out;
        lse[row.query] = row.top + Math.log(row.z);
    }
    return { out, lse };
}

export function draw(root, { q, k, v }) {
    const T = q.length, scores = scoresOf(q, k), most = Math.max(...scores.flat().map(Math.abs));
    let size = 4, window = 0, steps, visited;
    const { pictures, controls, say } = stage(root, "Flash attention: tiles and running sums");

    const grid = panel(pictures, { label: "", grow: 1, min: 270 }, (picture, width) => {
        const left = 22, cell = Math.min(22, (width - left) / T), at = visited[walk.value], x = s => left + s * cell, y = t => 20 + t * cell;
        const done = new Set(visited.slice(0, walk.value));
        picture.append(svg("text", { class: "name", x: left, y: 12 }, "keys"), svg("text", { class: "name", transform: `translate(13 ${y(T)}) rotate(-90)` }, "queries"));
        for (const step of steps) {
            const side = n => Math.min(size, T - n) * cell - 1.5, now = step === at;
            picture.append(svg("rect", { class: `flash-tile${step.skipped ? " skipped" : ""}`, x: x(step.s), y: y(step.t), width: side(step.s), height: side(step.t), rx: 2 }));
            if (step.skipped || !(now || done.has(step))) continue;
            for (const { query } of step.rows) {
                const [first, last] = interval(query, window);
                for (let j = Math.max(first, step.s); j < Math.min(last, step.s + size); j++) {
                    const style = now ? `fill: ${heat(scores[query][j], most)}` : null;
                    picture.append(svg("rect", { class: now ? null : "flash-done", style, x: x(j), y: y(query), width: cell - 1.5, height: cell - 1.5 }));
                }
            }
            if (now) picture.append(svg("rect", { class: "flash-now", x: x(step.s) - 1, y: y(step.t) - 1, width: side(step.s) + 2, height: side(step.t) + 2, rx: 3 }));
        }
        return y(T) + 4;
    });

    const body = html("tbody"), head = ["query", "<i>m</i>", "<i>m</i>′", "<i>e</i><sup><i>m</i>−<i>m</i>′</sup>", "<i>z</i>", "<i>o</i>/<i>z</i>"];
    const table = html("table", {}, html("caption", { html: "the tile’s queries, after this tile" }),
        html("thead", {}, html("tr", {}, head.map(name => html("th", { scope: "col", html: name })))), body);
    pictures.append(html("div", { class: "flash-table", style: "flex: 1.1 1 300px" }, table));

    const walk = stepper(controls, { label: "tile", most: 1, show: i => `${i + 1} of ${visited ? visited.length : 1}`, change: update });
    choice(controls, { label: "tile size", value: size, options: [2, 4, 8].map(n => [n, String(n)]), change: n => { size = n; restart(); } });
    choice(controls, { label: "window", value: 0, options: [[0, "all earlier keys"], [6, "the last 6"]], change: n => { window = n; restart(); } });

    function restart() {
        steps = visit(q, k, v, size, window);
        visited = steps.filter(step => !step.skipped);
        walk.restart(visited.length - 1);
        update();
    }

    function update() {
        const at = visited[walk.value], computed = visited.slice(0, walk.value + 1).length * size * size;
        body.replaceChildren(...at.rows.map(row => html("tr", { class: row.seen ? null : "flash-unseen" },
            html("th", { scope: "row" }, String(row.query)), html("td", {}, fixed(row.m, 2)), html("td", {}, fixed(row.top, 2)),
            html("td", { class: row.seen && row.m !== -Infinity && row.shrink < 1 ? "flash-shrunk" : null }, fixed(row.shrink, 3)),
            html("td", {}, fixed(row.z, 3)), html("td", {}, fixed(row.out[0], 3, true)))));
        const rescaled = at.rows.filter(row => row.shrink < 1 && row.m !== -Infinity).length;
        const skipped = steps.length - visited.length;
        grid.describe(`Scores of ${T} queries and keys in tiles of ${size}: queries from ${at.t} and keys from ${at.s} are at work, ${skipped} of ${steps.length} tiles are skipped`);
        grid.redraw();
        say(`${at.s === 0 || at.rows.every(row => row.m === -Infinity) ? "The first tile of these queries: their sums start." : rescaled
            ? `A larger score was found for ${rescaled} of ${at.rows.length} queries: their old sums <span class="b">shrink</span>.`
            : "No larger score: the old sums stay as they are."} ${computed} scores so far, of ${T * T}; ${size * size} are held at once. `
            + `${skipped} of ${steps.length} tiles are skipped.`);
    }
    restart();
}
