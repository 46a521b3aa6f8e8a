/* The living picture of the front page. Its numbers are in the page: see docs/_ext/living_picture.py. */
const COLOURS = { v: [[14, 142, 166], [138, 83, 200]], g: [[222, 110, 20], [200, 30, 90]] };       // plus and minus
const PAUSE = 600;                                                                                  // milliseconds between steps

const shown = (token) => (token === " " ? "␣" : token);

function numbersOf({ columns, parts, data }) {
    return { columns, parts, numbers: Int8Array.from(atob(data), (letter) => letter.charCodeAt(0)) };
}

/* What stands in a cell, in words: "k: q[3] = 0.43". Empty between two heads. */
function cellOf({ columns, parts, numbers }, row, column, token, d) {
    let at = column;
    for (const [name, heads, width, size] of parts) {
        if (at < heads * (width + 1)) {
            const head = Math.floor(at / (width + 1)), place = at % (width + 1);
            const number = numbers[row * columns + column];
            const sign = Math.abs(number) < 127 ? "=" : number > 0 ? "≥" : "≤";                     // colours end there
            const value = ((number * size) / 127).toPrecision(2);
            const index = heads > 1 ? `${head}, ${place}` : place;
            return place === width ? "" : `${shown(token)}: ${d}${name}[${index}] ${sign} ${value}`;
        }
        at -= heads * (width + 1);
    }
    return "";
}

/* One pixel for each number; the page's style enlarges them. */
function paint(canvas, { columns, numbers }, [plus, minus]) {
    canvas.width = columns;
    canvas.height = numbers.length / columns;
    const image = new ImageData(canvas.width, canvas.height);
    numbers.forEach((number, i) => {
        image.data.set(number < 0 ? minus : plus, 4 * i);
        image.data[4 * i + 3] = (255 * Math.abs(number)) / 127;
    });
    canvas.getContext("2d").putImageData(image, 0, 0);
}

function canvasFor(image) {
    const canvas = document.createElement("canvas");
    canvas.className = image.className;
    canvas.setAttribute("role", "img");
    image.replaceWith(canvas);
    return canvas;
}

function start(picture) {
    const data = JSON.parse(picture.querySelector("script").textContent);
    const [controls, button, slider] = [".controls", ".play", "input"].map((name) => picture.querySelector(name));
    const [stream, shows] = [...picture.querySelectorAll("img.heat")].map(canvasFor);
    const arrays = Object.fromEntries(Object.entries(data.arrays).map(([name, packed]) => [name, numbersOf(packed)]));
    const empty = { columns: 32, parts: [], numbers: new Int8Array(32 * (data.tokens.length - 1)) };
    const last = data.steps.at(-1);
    let timer = null, drawn = [];

    for (const [i, canvas] of [stream, shows].entries()) {
        const caption = canvas.parentElement.querySelector("figcaption");
        canvas.addEventListener("pointermove", (event) => {
            const { array, d } = drawn[i];
            const row = Math.floor((event.offsetY / canvas.clientHeight) * canvas.height);
            const column = Math.floor((event.offsetX / canvas.clientWidth) * canvas.width);
            caption.textContent = cellOf(array, row, column, data.tokens[row], d) || drawn[i].caption;
        });
        canvas.addEventListener("pointerleave", () => { caption.textContent = drawn[i].caption; });
    }

    function draw() {
        const at = Number(slider.value), n = data.steps.length, back = at >= n;
        const step = data.steps[back ? 2 * n - 1 - at : at];
        const state = back ? step.backward : step.forward, kind = back ? "g" : "v";
        const layer = step.layer === null ? "" : `, layer ${step.layer + 1}`;
        const name = `${back ? "Backward" : "Forward"}${layer}: ${step.title}`;
        picture.classList.toggle("back", back);
        picture.querySelector(".step b").textContent = name;
        picture.querySelector(".step code").textContent = state.says;
        picture.querySelector(".step a").textContent = step.see;
        picture.querySelector(".step a").href = step.href;
        slider.setAttribute("aria-valuetext", `${at + 1} of ${2 * n}. ${name}. ${state.says}`);
        for (const box of picture.querySelectorAll("[data-box]")) {
            box.classList.toggle("lit", step.boxes.includes(box.dataset.box));
        }
        const d = back ? "d" : "", held = state.stream ? arrays[`${kind} ${state.stream}`] : empty;
        drawn = [
            { array: held, d, caption: back ? "gradient dx" : "stream x" },
            { array: arrays[state.shows], d, caption: "this step" },
        ];
        [stream, shows].forEach((canvas, i) => {
            paint(canvas, drawn[i].array, COLOURS[kind]);
            canvas.parentElement.querySelector("figcaption").textContent = drawn[i].caption;
        });
        stream.setAttribute("aria-label", `The residual stream${back ? "'s gradient" : ""}: a heat map, one row for each token`);
        shows.setAttribute("aria-label", `${name}: a heat map, one row for each token`);
        predict(data.next[(back ? last : step).forward.stream]);
    }

    function predict(rows) {
        picture.querySelectorAll(".next > div").forEach((row, i) => {
            const [[right, likely], ...others] = rows[i];
            const parts = [["", likely], ...others].map(([token, p], j) => {
                const part = document.createElement("i");
                part.className = j ? "" : "right";
                part.style.width = `${p}%`;
                part.textContent = shown(token);
                return part;
            });
            row.querySelector("b").textContent = shown(right);
            row.querySelector("span").replaceChildren(...parts);
        });
    }

    function play(on) {
        clearInterval(timer);
        timer = on ? setInterval(advance, PAUSE) : null;
        if (on && slider.value === slider.max) slider.value = 0;
        button.textContent = on ? "Pause" : "Play";
        draw();
    }

    function advance() {
        slider.value = Number(slider.value) + 1;
        if (slider.value === slider.max) play(false);
        draw();
    }

    controls.hidden = false;
    button.addEventListener("click", () => play(timer === null));
    slider.addEventListener("input", () => play(false));
    slider.addEventListener("keydown", () => timer && play(false));
    if (!matchMedia("(prefers-reduced-motion: reduce)").matches) slider.value = 0;
    play(!matchMedia("(prefers-reduced-motion: reduce)").matches);
}

document.querySelectorAll(".living").forEach(start);
