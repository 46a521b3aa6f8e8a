// Code cells: a button below each runs it, after the cells before it; its text can then be edited.

import { attempt, button, editor, element, shown, statusLine } from "./parts.js";
import { session } from "./session.js";

export function prepareCells() {
  const listed = JSON.parse(document.getElementById("python-cells")?.textContent ?? "[]");
  const places = [...document.querySelectorAll("div.cell")];
  const cells = listed.map(({ code, there }, number) => new Cell(number, code, there ? places.shift() : null));
  if (listed.some(({ code }) => code.includes("bfloat16"))) session.packages = ["ml_dtypes"];
  session.onrestart = () => cells.forEach((cell) => { cell.ran = null; });
  cells.forEach((cell) => cell.prepare(cells));
}

const failure = ({ outputs }) => outputs.find(({ kind }) => kind === "error");

class Cell {
  constructor(number, code, place) {
    this.number = number;
    this.code = code;
    this.input = place?.querySelector(":scope > .cell_input, :scope > details > .cell_input") ?? null;
    this.place = place;
    this.ran = null;                       // the text that has been run in the present Python
  }

  prepare(cells) {
    if (!this.input) return;
    const name = `code cell ${cells.filter((cell) => cell.input).indexOf(this) + 1}`;
    this.status = statusLine();
    this.runButton = button("Run", () => this.run(cells), { "aria-label": `Run ${name}` });
    this.stopButton = button("Stop", () => session.stop(), { hidden: true, "aria-label": `Stop ${name}` });
    this.resetButton = button("Reset", () => this.reset(), { hidden: true, "aria-label": `Reset ${name}` });
    this.bar = element("div", { class: "python-bar" }, this.runButton, this.stopButton, this.resetButton, this.status);
    this.area = editor(this.code, name, () => this.run(cells));
    this.input.after(this.bar);
  }

  get text() {
    return this.area?.isConnected ? this.area.value : this.code;
  }

  edit() {
    if (this.area.isConnected) return;
    this.built = this.input.querySelector(":scope > div");
    this.built.replaceWith(this.area);
    this.resetButton.hidden = false;
  }

  async run(cells) {
    this.edit();
    this.runButton.disabled = true;
    this.stopButton.hidden = false;
    await attempt(this.status, () => this.run(cells), async (say) => {
      for (const cell of cells.slice(0, this.number)) {
        if (cell.ran === cell.text) continue;
        const error = failure(await cell.call(say));
        if (!error) continue;
        this.show([error]);
        return say(`Cell ${cell.number + 1} of this page, which comes before, raises an error.`);
      }
      const started = performance.now(), found = await this.call(say);
      this.show(found.outputs);
      say(failure(found) ? "It raises an error." : `Done in ${((performance.now() - started) / 1000).toFixed(1)} s.`);
    });
    this.runButton.disabled = false;
    this.stopButton.hidden = true;
  }

  async call(say) {
    const text = this.text, found = await session.call("run_cell", { code: text, number: this.number + 1 }, say);
    this.ran = failure(found) ? null : text;
    return found;
  }

  show(outputs) {
    this.output ??= this.place.querySelector(":scope .cell_output");
    if (!this.output) {
      this.output = element("div", { class: "cell_output" });
      this.place.append(this.output);
    }
    this.before ??= [...this.output.childNodes];
    this.output.replaceChildren(...outputs.map(shown));
  }

  reset() {
    this.area.value = this.code;
    this.area.replaceWith(this.built);
    if (this.before) this.output.replaceChildren(...this.before);
    this.before = null;
    this.resetButton.hidden = true;
    this.status.textContent = "";
    this.runButton.focus();
  }
}
