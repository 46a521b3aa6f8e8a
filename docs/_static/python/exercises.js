// Exercises: an editor for the file, the check, and what the reader has done, which stays in this browser.

import { attempt, button, editor, element, statusLine } from "./parts.js";
import { session } from "./session.js";

const BLANK = 'raise NotImplementedError("your turn")';
const keyOf = (name) => `numllama exercise ${name}`;

function recalled(name) {
  try {
    return JSON.parse(localStorage.getItem(keyOf(name))) ?? {};
  } catch {
    return {};                             // no storage, or not ours
  }
}

function remember(name, values) {
  try {
    localStorage.setItem(keyOf(name), JSON.stringify({ ...recalled(name), ...values }));
  } catch {
    // Without storage, the text lives as long as the page.
  }
}

export function prepareExercises() {
  document.querySelectorAll(".exercise-in-page").forEach(prepare);
  document.querySelectorAll(".exercises-in-page > li").forEach((row) => {
    const { text, state } = recalled(row.dataset.exercise);
    row.querySelector(".state").textContent = state === "right" ? "✓ right" : text ? "begun" : "";
  });
}

function prepare(section) {
  const name = section.dataset.exercise, file = section.querySelector("pre").textContent;
  const area = editor(recalled(name).text ?? file, `${name}.py`, check);
  const status = statusLine(), results = element("ul", { class: "python-results" });
  const live = element("div", { "aria-live": "polite" }, results);
  const checkButton = button("Check", check);
  const stopButton = button("Stop", () => session.stop(), { hidden: true });
  const resetButton = button("Reset", reset);
  area.addEventListener("input", () => remember(name, { text: area.value, state: "begun" }));
  section.replaceChildren(area, element("div", { class: "python-bar" }, checkButton, stopButton, resetButton, status), live);
  toTheBlank();

  function toTheBlank() {
    const at = area.value.indexOf(BLANK), lines = (text) => text.split("\n").length;
    if (at >= 0) area.setSelectionRange(at, at + BLANK.length);
    const share = lines(file.slice(0, file.indexOf(BLANK))) / lines(area.value);          // an answer stands where the blank was
    area.scrollTop = share * area.scrollHeight - area.clientHeight / 2;
  }

  async function check() {
    checkButton.disabled = true;
    stopButton.hidden = false;
    results.replaceChildren();
    await attempt(status, check, async (say) => show(await session.call("check", { name, text: area.value }, say), say));
    checkButton.disabled = false;
    stopButton.hidden = true;
  }

  function show(found, say) {
    const count = (rows) => rows.flatMap(({ names }) => names).length;
    const wrong = count(found.results.filter(({ right }) => !right));
    results.replaceChildren(...found.results.map(row));
    if (found.printed) results.append(element("li", {}, element("pre", { tabindex: "0" }, found.printed)));
    const right = !wrong && !found.message;
    remember(name, { text: area.value, state: right ? "right" : "begun" });
    say(found.message || (right ? "Everything is right." : `${wrong} of ${count(found.results)} not right yet.`));
  }

  function row({ names, right, sentences: [verdict, ...others], code }) {
    const below = others.map((text) => element("div", {}, text));
    if (code) below.unshift(element("div", {}, element("code", {}, code)));
    return element("li", { class: right ? "right" : "wrong" },
      element("code", {}, names.join(", ")), ` ${right ? "✓" : "✗"} ${verdict}`, ...below);
  }

  function reset() {
    area.value = file;
    results.replaceChildren();
    status.textContent = "";
    remember(name, { text: undefined, state: undefined });
    toTheBlank();
    area.focus();
  }
}
