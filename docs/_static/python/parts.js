// Elements that cells and exercises share: buttons, an editor, a line that says what happens, outputs.

import { Absent, session } from "./session.js";

export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value !== false && value !== null) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children);
  return made;
}

export const button = (label, onclick, more = {}) =>
  element("button", { type: "button", class: "python-button", onclick, ...more }, label);

// A text area for code: Tab indents, Enter keeps the indentation, Escape lets Tab leave, Ctrl+Enter runs.
export function editor(text, label, run) {
  const area = element("textarea", {
    class: "python-editor", spellcheck: "false", autocapitalize: "off", autocomplete: "off", "aria-label": label,
    title: "Ctrl+Enter runs it. Escape, then Tab, leaves the editor.",
  });
  let leaving = false;
  area.value = text;
  area.rows = Math.min(28, Math.max(2, text.split("\n").length));
  const insert = (added) => {
    area.setRangeText(added, area.selectionStart, area.selectionEnd, "end");
    area.dispatchEvent(new Event("input", { bubbles: true }));
  };
  const lineStart = () => area.value.lastIndexOf("\n", area.selectionStart - 1) + 1;
  area.addEventListener("keydown", (event) => {
    if (event.key === "Escape") {
      leaving = true;
      return;
    }
    if (event.key === "Tab" && !leaving) {
      event.preventDefault();
      if (event.shiftKey) dedent();
      else insert(" ".repeat(4 - ((area.selectionStart - lineStart()) % 4)));
    } else if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      run();
    } else if (event.key === "Enter") {
      event.preventDefault();
      const before = area.value.slice(lineStart(), area.selectionStart);
      insert("\n" + before.match(/^ */)[0] + (before.trimEnd().endsWith(":") ? "    " : ""));
    }
    leaving = false;
  });
  function dedent() {
    const start = lineStart(), at = area.selectionStart;
    const spaces = Math.min(4, area.value.slice(start).match(/^ */)[0].length);
    area.setRangeText("", start, start + spaces, "preserve");
    area.setSelectionRange(Math.max(start, at - spaces), Math.max(start, at - spaces));
    area.dispatchEvent(new Event("input", { bubbles: true }));
  }
  return area;
}

// The line below the buttons, read out by screen readers.
export const statusLine = () => element("p", { class: "python-status", role: "status" });

// Run something that calls the session, with `say`; errors are shown in the status line.
export async function attempt(line, again, work) {
  const say = (text) => {
    if (line.textContent !== text) line.textContent = text;
  };
  try {
    await work(say);
    return true;
  } catch (error) {
    say(error.message);
    if (error instanceof Absent) offer(line, error, again);
    return false;
  }
}

// Python is not here: say how to get it, and load it from another host only if the reader says so.
function offer(line, error, again) {
  line.append(" ", element("span", {}, "Whoever built it can add it: ", element("code", {}, "python docs/pyodide.py BOOK"), "."));
  if (!error.host) return;
  line.append(" ", button(`Load it from ${error.host}`, () => {
    session.allowElsewhere();
    again();
  }));
}

export function shown(output) {
  if (output.kind === "svg") {
    const url = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(output.text)}`;
    return element("img", { src: url, alt: "The picture that this code draws" });
  }
  if (output.kind === "markdown") return markdown(output.text);
  return element("pre", { class: `python-${output.kind}`, tabindex: "0" }, output.text);
}

// As much Markdown as cells display: tables, blocks of code, and lines of text.
function markdown(text) {
  const box = element("div"), lines = text.split("\n");
  while (lines.length) {
    const line = lines.shift();
    if (line.startsWith("```")) {
      const code = lines.splice(0, Math.max(0, lines.findIndex((each) => each.startsWith("```"))));
      lines.shift();
      box.append(element("pre", { tabindex: "0" }, code.join("\n")));
    } else if (line.startsWith("|")) {
      const rows = [line];
      while (lines[0]?.startsWith("|")) rows.push(lines.shift());
      box.append(table(rows.map((row) => row.replace(/^\||\|\s*$/g, "").split("|").map((cell) => cell.trim()))));
    } else if (line.trim()) {
      box.append(element("p", {}, ...inline(line)));
    }
  }
  return box;
}

function table([head, , ...rows]) {
  const row = (cells, tag) => element("tr", {}, ...cells.map((cell) => element(tag, {}, ...inline(cell))));
  return element("table", { class: "table" }, element("thead", {}, row(head, "th")),
    element("tbody", {}, ...rows.map((cells) => row(cells, "td"))));
}

function inline(text) {
  return text.split(/(`[^`]+`|\*\*[^*]+\*\*|\[[^\]]+\]\([^)]+\))/).map((part) => {
    const link = part.match(/^\[([^\]]+)\]\(([^)]+)\)$/);
    if (link) return element("a", { href: link[2] }, link[1]);
    if (/^`.+`$/.test(part)) return element("code", {}, part.slice(1, -1));
    if (/^\*\*.+\*\*$/.test(part)) return element("strong", {}, part.slice(2, -2));
    return part;
  });
}
