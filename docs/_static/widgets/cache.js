// The KV cache: tokens come one by one; what is computed, what is reused, and how many bytes are kept.

import { axes, choice, line, number, panel, stage, stepper, svg } from "./shared.js";

/** Bytes of the cache of one text of `tokens` tokens: a key and a value for each key head of each layer. */
export const bytes = ({ layers, headDim, perNumber }, keyHeads, tokens) => 2 * layers * keyHeads * headDim * perNumber * tokens;

/** How often a token has passed through the model when `tokens` are there: once each, or everything again at each step. */
export const passes = (tokens, cached) => (cached ? tokens : (tokens * (tokens + 1)) / 2);

/** 5,120 bytes as "5 KiB". */
export function size(bytes) {
    const unit = [[2 ** 30, "GiB"], [2 ** 20, "MiB"], [2 ** 10, "KiB"]].find(([one]) => bytes >= one) ?? [1, "bytes"];
    return `${number(bytes / unit[0], bytes / unit[0] < 10 ? 1 : 0)} ${unit[1]}`;
}

export function draw(root, { words, heads: H, layers, headDim, perNumber, name }) {
    const model = { layers, headDim, perNumber }, T = words.length, options = [1, 2, 4, 8].filter(k => H % k === 0);
    let K = 2, cached = "yes";
    const { pictures, controls, say } = stage(root, "The KV cache: what is computed, what is reused, what is kept");

    const grid = panel(pictures, { label: "", grow: 1.6, min: 300 }, (picture, width) => {
        const t = walk.value, left = 50, fan = 60, cell = Math.min(54, (width - left - fan) / T), pitch = 27, top = 26;
        const x = s => left + s * cell, middle = k => top + ((k + 0.5) * H * pitch) / K;
        const text = (x, y, words, kind, anchor) => picture.append(svg("text", { class: kind, x, y, "text-anchor": anchor }, words));
        text(left - 8, middle(0) - 3, "key", "tick", "end");
        text(left - 8, middle(0) + 12, "value", "tick", "end");
        for (let s = 0; s <= t; s++) {
            const kind = s === t ? "cache-new" : cached === "yes" ? "cache-kept" : "cache-again";
            text(x(s) + cell / 2 - 2, 12, words[s], s === t ? "a" : "tick", "middle");
            for (let k = 0; k < K; k++) for (const y of [middle(k) - 12.5, middle(k) + 0.5])
                picture.append(svg("rect", { class: kind, x: x(s), y, width: cell - 4, height: 12, rx: 2 }));
        }
        const from = x(t) + cell, to = from + fan - 24;
        text(to, 12, "queries", "a", "middle");
        for (let h = 0; h < H; h++) {                                              // only the newest token's queries are needed
            const y = top + (h + 0.5) * pitch;
            picture.append(svg("line", { class: "cache-asks", x1: from, y1: middle(Math.floor((h * K) / H)), x2: to, y2: y }));
            picture.append(svg("circle", { class: "cache-new", cx: to, cy: y, r: 6 }));
        }
        return top + H * pitch + 4;
    });

    const plot = panel(pictures, { label: "Bytes of the cache against the length of the text, for each number of key heads", grow: 1, min: 270 }, (picture, width) => {
        const top = 26, height = 180, far = 8192, wide = width - 104, highest = bytes(model, H, far);
        const { x, y } = axes(picture, {
            left: 52, top, width: wide, height, x: [0, far], y: [0, highest], xname: "tokens", yname: `the cache of ${name}`, xticks: [0, far / 2, far],
            yticks: [0, 0.25, 0.5, 0.75, 1].map(share => share * highest), yshow: size, xshow: v => number(v, 0),
        });
        for (const k of options) {
            picture.append(line([[x(0), y(0)], [x(far), y(bytes(model, k, far))]], k === K ? "a" : "pale"));
            picture.append(svg("text", { class: k === K ? "a" : "tick", x: x(far) + 6, y: y(bytes(model, k, far)) + 4 }, `K = ${k}`));
        }
        return top + height + 40;
    });

    const walk = stepper(controls, { label: "token", most: T - 1, value: 3, show: t => `${t + 1} of ${T}`, change: update });
    choice(controls, { label: "key heads <i>K</i>", value: K, options: options.map(k => [k, String(k)]), change: k => { K = k; update(); } });
    choice(controls, { label: "cache", value: cached, options: [["yes", "kept"], ["no", "none"]], change: v => { cached = v; update(); } });

    function update() {
        const t = walk.value, n = t + 1, each = bytes(model, K, 1);
        grid.describe(`Token ${n}: its ${H} queries, its ${K} keys and ${K} values are new; those of ${t} earlier tokens are ${cached === "yes" ? "reused" : "computed again"}`);
        grid.redraw();
        plot.redraw();
        const work = cached === "yes"
            ? `<span class="a">One token</span> passes through the model; the keys and values of ${t} earlier ones are reused. So far ${n} passes, without a cache ${passes(n, false)}.`
            : `<span class="b">All ${n} tokens</span> pass through the model, to find one new token. So far ${passes(n, false)} passes; with a cache ${n}.`;
        say(`${work} ${cached === "yes" ? `Kept: ${size(each)} for each token, in all ${layers} layers of ${name}.` : "Nothing is kept."}`);
    }
    update();
}
