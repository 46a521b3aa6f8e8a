/* The map of the path: the page under the pointer, or with the focus, lights up all pages that come before it. */
const stations = [...document.querySelectorAll(".path-map li")];

function light(station) {
    const needs = (station?.dataset.needs ?? "").split(" ");
    for (const other of stations) {
        other.classList.toggle("before", needs.includes(other.dataset.page));
        other.classList.toggle("chosen", other === station);
    }
}

for (const name of ["pointerover", "focusin"]) {
    document.querySelector(".path-map")?.addEventListener(name, (event) => light(event.target.closest("li")));
}
document.querySelector(".path-map")?.addEventListener("pointerleave", () => light(document.activeElement.closest("li")));
