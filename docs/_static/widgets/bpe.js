// Byte-pair encoding of a text that the reader types: one word after another, the pair with the lowest rank first.

import { html, number, slider, stage, stepper } from "./shared.js";

// GPT-2's words, as numllama's tokenizer cuts them; White_Space is what Python calls \s.
const WORDS = /'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\p{White_Space}\p{L}\p{N}]+|\p{White_Space}+(?!\P{White_Space})|\p{White_Space}+/gu;

/** The words of a text, each as a list of its bytes. */
export const wordsOf = text => (text.match(WORDS) ?? []).map(word => [...new TextEncoder().encode(word)]);

/** The first `n` merges as a table: "a,b" to the rank. The pair of rank r makes token 256 + r. */
export const ranksOf = (merges, n = merges.length) => new Map(merges.slice(0, n).map((pair, rank) => [pair.join(), rank]));

/** All states of a text, from bytes to the end: {words, word, at, rank}, where the pair of that rank has just merged. */
export function merging(text, ranks) {
    let words = wordsOf(text);
    const states = [{ words, rank: null }];
    for (;;) {
        let best = Infinity, where = null;
        for (let word = 0; word < words.length && where === null; word++) {
            const ids = words[word];
            for (let at = 0; at + 1 < ids.length; at++) {
                const rank = ranks.get(`${ids[at]},${ids[at + 1]}`) ?? Infinity;
                if (rank < best) [best, where] = [rank, { word, at }];
            }
        }
        if (where === null) return states;
        words = words.map((ids, word) => (word === where.word ? [...ids.slice(0, where.at), 256 + best, ...ids.slice(where.at + 2)] : ids));
        states.push({ words, ...where, rank: best });
    }
}

/** The same with a list of merges. */
export const mergingWith = (text, merges, n) => merging(text, ranksOf(merges, n));

/** The final ids of a text. */
export const encode = (text, merges, n) => mergingWith(text, merges, n).at(-1).words.flat();

/** The bytes of every token. */
export function spellings(merges) {
    const tokens = Array.from({ length: 256 }, (_, byte) => [byte]);
    for (const [a, b] of merges) tokens.push([...tokens[a], ...tokens[b]]);
    return tokens;
}

/** A token's text; spaces and bytes that are not whole characters are made visible. */
export function shown(bytes) {
    try {
        return new TextDecoder("utf-8", { fatal: true }).decode(new Uint8Array(bytes)).replaceAll(" ", "\u2423").replaceAll("\n", "\u21B5");
    } catch {
        return bytes.map(byte => byte.toString(16).toUpperCase().padStart(2, "0")).join(" ");
    }
}

export function draw(root, { merges, text: start }) {
    const tokens = spellings(merges);
    let n = merges.length, ranks = ranksOf(merges), states;
    const { pictures, controls, say } = stage(root, "Byte-pair encoding of a text that you type");

    const input = html("input", { type: "text", value: start, maxlength: 60, spellcheck: "false", autocomplete: "off", oninput: () => restart(Infinity) });
    const row = html("div", { class: "bpe-row", role: "img" }), ids = html("p", { class: "bpe-ids" });
    pictures.append(html("label", { class: "bpe-text" }, html("span", {}, "your text"), input), row, ids);
    const walk = stepper(controls, { label: "merge", most: 1, change: update, show: i => (states ? `${i} of ${states.length - 1}` : "") });
    slider(controls, {
        label: "vocabulary", min: 256, max: 256 + merges.length, step: 1, value: 256 + n,
        change: size => { n = size - 256; ranks = ranksOf(merges, n); restart(Infinity); },
    });

    function restart(step) {
        row.style.minHeight = "";
        states = merging(input.value, ranks);
        walk.restart(states.length - 1, step);
        update();
    }

    function update() {
        const { words, word, at, rank } = states[walk.value], next = states[walk.value + 1];
        row.replaceChildren(...words.map((list, w) => html("span", { class: "bpe-word" }, list.map((id, i) => {
            const mark = (w === word && i === at ? " made" : "") + (next && w === next.word && (i === next.at || i === next.at + 1) ? " next" : "");
            const pair = i + 1 < list.length ? ranks.get(`${id},${list[i + 1]}`) ?? null : null;
            return html("span", { class: `bpe-token${mark}`, style: `--size: ${Math.min(tokens[id].length, 7)}` },
                html("b", {}, shown(tokens[id])), html("small", {}, String(id)),
                pair === null ? null : html("i", { class: next && w === next.word && i === next.at ? "next" : null }, String(pair)));
        }))));
        row.style.minHeight = `${row.offsetHeight}px`;                             // fewer tokens do not move the controls
        const left = words.flat(), bytes = words.flat().reduce((sum, id) => sum + tokens[id].length, 0);
        row.setAttribute("aria-label", `The tokens: ${left.map(id => shown(tokens[id])).join(" | ")}`);
        ids.textContent = walk.value === states.length - 1 ? `ids: ${left.join(", ")}` : "\u00A0";
        const pair = rank === null ? "" : merges[rank].map(id => `<b>${escape(shown(tokens[id]))}</b>`).join(" + ");
        const upcoming = next ? ` Next is the pair of the lowest rank in a word, ${next.rank}.` : " No pair of neighbours is in the list of merges.";
        say(`${rank === null ? "The bytes." : `Merge ${rank}: ${pair}.`}${upcoming} ${bytes} bytes are ${number(left.length)} tokens.`);
    }
    restart(0);
}

const escape = text => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;");
