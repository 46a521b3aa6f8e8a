// A deck of slides: keys, the number of the slide in the address, notes, and text that fits.
const LARGEST = 1.25, SMALLEST = 0.7, STEP = 0.025;     // of the size of a slide's text
const dark = window.matchMedia("(prefers-color-scheme: dark)");
const root = document.documentElement;
const others = "BroadcastChannel" in window ? new BroadcastChannel(location.pathname) : null;  // other windows of this deck
let slides = [], at = 0;
let leads = false;                                     // was this window the last one to be touched?

// The colours of code go by this attribute, as in the book. Paper is white.
const theme = light => { root.dataset.theme = dark.matches && light !== true ? "dark" : "light"; };
theme();
dark.addEventListener("change", theme);
window.addEventListener("beforeprint", () => theme(true));
window.addEventListener("afterprint", theme);
root.classList.toggle("with-notes", new URLSearchParams(location.search).has("notes"));

// Each slide's text gets the size at which it fits on a sheet of 1280 × 720; on larger sheets everything is larger.
function fit() {
    root.classList.add("measuring");
    for (const body of document.querySelectorAll(".body")) {
        const overflows = () => body.scrollHeight > body.clientHeight || body.scrollWidth > body.clientWidth;
        let size = LARGEST;
        do body.style.setProperty("--fit", size.toFixed(3)); while (overflows() && (size -= STEP) >= SMALLEST);
    }
    root.classList.remove("measuring");
}

// Boxes that scroll sideways, on a phone, can be reached with the keyboard.
function markBoxes() {
    for (const box of document.querySelectorAll(".body :is(pre, div.math, .pst-scrollable-table-container)")) {
        if (getComputedStyle(box).overflowX === "auto" && box.scrollWidth > box.clientWidth) box.tabIndex = 0;
        else box.removeAttribute("tabindex");
    }
}

function show(number) {
    at = Math.max(0, Math.min(slides.length - 1, number));
    slides[at].scrollIntoView({ behavior: "instant" });
}

// The slide in the middle of the window: turned to, scrolled to, or opened by its address.
// What the observer saw may be older than the last key, so the layout is asked again.
const watch = new IntersectionObserver(() => {
    at = slides.findIndex(slide => slide.getBoundingClientRect().bottom > innerHeight / 2);
    history.replaceState(null, "", `#${slides[at].id}`);
    if (leads) others?.postMessage(at);                 // a window that follows must not answer: it may be behind
}, { rootMargin: "-50% 0px" });

const next = () => show(at + 1), back = () => show(at - 1);
const KEYS = {
    ArrowRight: next, ArrowDown: next, PageDown: next, ArrowLeft: back, ArrowUp: back, PageUp: back,
    " ": event => show(at + (event.shiftKey ? -1 : 1)), Home: () => show(0), End: () => show(slides.length - 1),
    f: () => document.fullscreenElement ? document.exitFullscreen() : root.requestFullscreen(),
    n: () => { root.classList.toggle("with-notes"); show(at); },
};

function pressed(event) {
    const scrolled = event.target.tabIndex === 0 && event.target.matches("pre, div") && event.key.startsWith("Arrow");
    if (event.ctrlKey || event.metaKey || event.altKey || scrolled || !(event.key in KEYS)) return;
    event.preventDefault();
    KEYS[event.key](event);
}

window.addEventListener("load", async () => {
    slides = [...document.querySelectorAll(".slide")];
    await window.MathJax?.startup?.promise;
    await document.fonts.ready;
    fit();
    markBoxes();
    window.addEventListener("resize", () => { markBoxes(); show(at); });
    window.addEventListener("keydown", pressed);
    for (const touch of ["keydown", "wheel", "pointerdown"]) window.addEventListener(touch, () => { leads = true; }, true);
    others?.addEventListener("message", event => { leads = false; show(event.data); });
    const opened = slides.findIndex(slide => `#${slide.id}` === location.hash);
    if (opened > 0) show(opened);                       // math has moved what is below it
    for (const slide of slides) watch.observe(slide);
    root.dataset.ready = "";
});
