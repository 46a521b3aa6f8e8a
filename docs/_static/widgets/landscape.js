// The loss on a plane through a trained model's parameters, for several models of the ladder.

import { axes, choice, fixed, html, line, number, panel, slider, stage, svg } from "./shared.js";

/** The loss at (a, b), between the points of the grid: grid[i][j] is the loss at b = at[i] and a = at[j]. */
export function between(grid, at, a, b) {
    const step = at[1] - at[0], clamp = v => Math.max(0, Math.min(at.length - 1.000001, (v - at[0]) / step));
    const x = clamp(a), y = clamp(b), j = Math.floor(x), i = Math.floor(y), u = x - j, v = y - i;
    return (1 - v) * ((1 - u) * grid[i][j] + u * grid[i][j + 1]) + v * ((1 - u) * grid[i + 1][j] + u * grid[i + 1][j + 1]);
}

/** The pieces of the line on which the loss has a value, as [[a, b], [a, b]]: two edges of a square of the grid each. */
export function contour(grid, at, level) {
    const pieces = [], n = at.length;
    for (let i = 0; i + 1 < n; i++) for (let j = 0; j + 1 < n; j++) {
        const corners = [[i, j], [i, j + 1], [i + 1, j + 1], [i + 1, j]], crossed = [];
        corners.forEach(([r, c], side) => {
            const [r2, c2] = corners[(side + 1) % 4], here = grid[r][c] - level, there = grid[r2][c2] - level;
            if (here < 0 === there < 0) return;
            const share = here / (here - there);
            crossed.push([at[c] + share * (at[c2] - at[c]), at[r] + share * (at[r2] - at[r])]);
        });
        for (let p = 0; p + 1 < crossed.length; p += 2) pieces.push([crossed[p], crossed[p + 1]]);
    }
    return pieces;
}

const LEVELS = [2.1, 2.2, 2.3, 2.4, 2.5, 2.75, 3, 3.25, 3.5, 4, 4.5, 5, 6, 7, 8, 10, 12, 16];
const LOW = 1.9, HIGH = 6;                                             // of the colours, the same for all models

export function draw(root, { at, rungs }) {
    let rung = rungs.at(-1), a = 0, b = 0;
    const edge = at.at(-1);
    const { pictures, controls, say } = stage(root, "The loss around a trained model");

    function shade(grid, n = 96) {
        const canvas = html("canvas", { width: n, height: n }), context = canvas.getContext("2d"), image = context.createImageData(n, n);
        for (let y = 0; y < n; y++) for (let x = 0; x < n; x++) {
            const loss = between(grid, at, at[0] + ((x + 0.5) / n) * 2 * edge, edge - ((y + 0.5) / n) * 2 * edge);
            const share = Math.max(0, Math.min(1, Math.log(loss / LOW) / Math.log(HIGH / LOW)));
            image.data.set([255, 255, 255, 235 * share], 4 * (y * n + x));
        }
        context.putImageData(image, 0, 0);
        return canvas.toDataURL();
    }
    const shades = new Map(rungs.map(one => [one.name, null]));

    const map = panel(pictures, { label: "", grow: 1, min: 270 }, (picture, width) => {
        const side = Math.min(width - 40, 340), left = 34, top = 20, x = v => left + ((v + edge) / (2 * edge)) * side, y = v => top + ((edge - v) / (2 * edge)) * side;
        if (!shades.get(rung.name)) shades.set(rung.name, shade(rung.loss));
        picture.append(
            svg("mask", { id: "landscape-mask", maskUnits: "userSpaceOnUse", x: left, y: top, width: side, height: side },
                svg("image", { href: shades.get(rung.name), x: left, y: top, width: side, height: side, preserveAspectRatio: "none" })),
            svg("rect", { class: "landscape-shade", x: left, y: top, width: side, height: side, mask: "url(#landscape-mask)" }));
        for (const level of LEVELS) {
            const d = contour(rung.loss, at, level).map(([[a, b], [c, d]]) => `M${x(a).toFixed(1)} ${y(b).toFixed(1)}L${x(c).toFixed(1)} ${y(d).toFixed(1)}`).join("");
            if (d) picture.append(svg("path", { class: "landscape-contour", d }));
        }
        picture.append(svg("rect", { class: "landscape-frame", x: left, y: top, width: side, height: side }));
        for (const v of [-edge, 0, edge]) {
            picture.append(svg("text", { class: "tick", x: x(v), y: top + side + 16, "text-anchor": "middle" }, number(v)));
            picture.append(svg("text", { class: "tick", x: left - 6, y: y(v) + 4, "text-anchor": "end" }, number(v)));
        }
        picture.append(svg("text", { class: "name", x: left, y: 11 }, "b"), svg("text", { class: "name", x: left + side + 6, y: top + side + 4 }, "a"));
        picture.append(svg("line", { class: "landscape-cut", x1: left, x2: left + side, y1: y(b), y2: y(b) }),
            svg("circle", { class: "landscape-marker", cx: x(a), cy: y(b), r: 7 }));
        picture.onpointerdown = picture.onpointermove = event => {
            if (event.type === "pointermove" && !event.buttons) return;
            const box = picture.getBoundingClientRect(), scale = width / box.width;
            const inside = v => Math.max(-edge, Math.min(edge, v));
            if (event.type === "pointerdown") picture.setPointerCapture(event.pointerId);
            across.value = inside((((event.clientX - box.left) * scale - left) / side) * 2 * edge - edge);
            along.value = inside(edge - (((event.clientY - box.top) * scale - top) / side) * 2 * edge);
            [a, b] = [across.value, along.value];
            update();
        };
        return top + side + 24;
    });
    map.picture.classList.add("landscape-map");

    const cut = panel(pictures, { label: "The loss along the horizontal line through the marker, for all models", grow: 1.2, min: 270 }, (picture, width) => {
        const top = 26, height = 250, wide = width - 110, n = 80, points = Array.from({ length: n + 1 }, (_, i) => -edge + (2 * edge * i) / n);
        const most = Math.min(8, Math.max(...rungs.map(one => Math.max(...points.map(p => between(one.loss, at, p, b))))));
        const { x, y } = axes(picture, { left: 36, top, width: wide, height, x: [-edge, edge], y: [1.5, most], xname: "a", yname: "loss along the dashed line, all rungs" });
        const ends = [];
        for (const one of [...rungs.filter(one => one !== rung), rung]) {
            const curve = points.map(p => [x(p), y(Math.min(most, between(one.loss, at, p, b)))]);
            picture.append(line(curve, one === rung ? "a" : "pale"));
            ends.push({ one, at: curve.at(-1)[1] });
        }
        ends.sort((p, q) => p.at - q.at);
        ends.forEach((end, i) => { if (i) end.at = Math.max(end.at, ends[i - 1].at + 14); });
        for (const { one, at } of ends) picture.append(svg("text", { class: one === rung ? "a" : "tick", x: x(edge) + 6, y: at + 4 }, one.name));
        picture.append(svg("circle", { class: "fill-b", cx: x(a), cy: y(Math.min(most, between(rung.loss, at, a, b))), r: 5 }));
        return top + height + 40;
    });

    choice(controls, { label: "rung", value: rung.name, options: rungs.map(one => [one.name, one.name]), change: name => { rung = rungs.find(one => one.name === name); update(); } });
    const move = (label, change) => slider(controls, { label, min: -edge, max: edge, step: 0.02, value: 0, change });
    const across = move("<i>a</i>", v => { a = v; update(); }), along = move("<i>b</i>", v => { b = v; update(); });

    function update() {
        const here = between(rung.loss, at, a, b), middle = between(rung.loss, at, 0, 0);
        map.describe(`The loss of ${rung.name} on the plane; ${fixed(here, 2)} at a = ${fixed(a, 2)}, b = ${fixed(b, 2)}`);
        map.redraw();
        cut.redraw();
        say(`<b>${rung.name}</b> at <i>a</i> = ${fixed(a, 2)}, <i>b</i> = ${fixed(b, 2)}: the loss is <span class="b">${fixed(here, 3)}</span>; `
            + `where training ended, it was ${fixed(middle, 3)}.`);
    }
    update();
}
