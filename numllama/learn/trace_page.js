// Reads the numbers of a trace aloud: point at a picture or a table's cell, or reach it by Tab and the arrow keys.
const tokens = JSON.parse(document.getElementById("tokens").textContent)
const line = document.createElement("output")
line.className = "line"
line.setAttribute("aria-live", "polite")
line.textContent = "Point at a picture, or press Tab and the arrow keys, to read its numbers."
document.body.append(line)

const mark = document.createElement("span")
mark.className = "mark"

const decoded = new Map()
function numbers(row, kind) {                                          // float32, little-endian, as base64
  const key = row.id + kind
  if (!decoded.has(key) && row.dataset[kind]) {
    const bytes = Uint8Array.from(atob(row.dataset[kind]), c => c.charCodeAt(0))
    decoded.set(key, new DataView(bytes.buffer))
  }
  const view = decoded.get(key)
  return i => view && view.getFloat32(4 * i, true)
}

const short = x => (x === 0 ? "0" : Math.abs(x) < 1e-3 || Math.abs(x) >= 1e5 ? x.toExponential(3) : x.toPrecision(4))
const byToken = axis => ["token", "query", "key"].includes(axis)

// What a picture's pixel is: its place in words, its value and its gradient.
function described(image, r, c) {
  const row = document.getElementById(image.dataset.of)
  const axes = row.dataset.axes.split(", "), plane = Number(image.dataset.plane)
  const place = axes.length > 2 ? [plane, r, c] : [r, c]
  const words = axes.map((axis, i) => `${axis} ${place[i]}` + (byToken(axis) ? ` ${tokens[place[i]]}` : ""))
  const i = (plane * image.naturalHeight + r) * image.naturalWidth + c
  const value = numbers(row, "value")(i), gradient = numbers(row, "gradient")(i)
  return `${row.dataset.name} · ${words.join(", ")} · value ${short(value)}` +
    (gradient === undefined ? "" : ` · gradient ${short(gradient)}`)
}

function show(image, r, c) {
  r = Math.min(Math.max(r, 0), image.naturalHeight - 1)
  c = Math.min(Math.max(c, 0), image.naturalWidth - 1)
  Object.assign(image.dataset, { r, c })
  const box = image.parentElement
  const height = image.clientHeight / image.naturalHeight, width = image.clientWidth / image.naturalWidth
  const left = image.offsetLeft + image.clientLeft, top = image.offsetTop + image.clientTop
  Object.assign(mark.style, {
    left: `${left + c * width}px`, top: `${top + r * height}px`, width: `${Math.max(width, 3)}px`, height: `${Math.max(height, 3)}px`,
  })
  if (mark.parentElement !== box) box.append(mark)
  line.textContent = described(image, r, c)
}

const maps = [...document.querySelectorAll("img[data-of]")]
for (const image of maps) {
  const row = document.getElementById(image.dataset.of)
  image.parentElement.classList.add("pictures")
  image.setAttribute("role", "application")
  image.setAttribute("aria-roledescription", "picture of numbers; arrow keys move")
  image.setAttribute("aria-label", `${row.dataset.name}, ${image.dataset.kind} ${image.alt}`)
  image.tabIndex = image.dataset.plane === "0" ? 0 : -1               // one stop for all pictures of an array
  const at = event => {
    const box = image.getBoundingClientRect()
    show(image, Math.floor((event.clientY - box.top) / box.height * image.naturalHeight),
         Math.floor((event.clientX - box.left) / box.width * image.naturalWidth))
  }
  image.addEventListener("pointermove", at)
  image.addEventListener("pointerdown", at)
  image.addEventListener("focus", () => { if (image.matches(":focus-visible")) show(image, Number(image.dataset.r || 0), Number(image.dataset.c || 0)) })
  image.addEventListener("keydown", event => {
    const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key]
    if (!step) return
    event.preventDefault()
    const r = Number(image.dataset.r || 0) + step[0], c = Number(image.dataset.c || 0) + step[1]
    const next = c < 0 ? -1 : c >= image.naturalWidth ? 1 : 0         // beyond the edge: the array's next picture
    const other = next && maps.find(m => m.dataset.of === image.dataset.of && m.dataset.kind === image.dataset.kind &&
      m.className === image.className && Number(m.dataset.plane) === Number(image.dataset.plane) + next)
    if (!other) return show(image, r, c)
    other.dataset.r = r
    other.dataset.c = next > 0 ? 0 : other.naturalWidth - 1
    other.focus()
    show(other, Number(other.dataset.r), Number(other.dataset.c))
  })
}

for (const table of document.querySelectorAll("table.grid")) {
  const rows = [...table.rows].map(row => [...row.cells].filter(cell => cell.dataset.tip)).filter(row => row.length)
  rows.forEach((cells, r) => cells.forEach((cell, c) => {
    cell.tabIndex = r + c === 0 ? 0 : -1
    const tell = () => { line.textContent = cell.dataset.tip }
    cell.addEventListener("pointerover", tell)
    cell.addEventListener("focus", tell)
    cell.addEventListener("keydown", event => {
      const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key]
      const next = step && rows[r + step[0]]?.[c + step[1]]
      if (step) event.preventDefault()
      if (next) next.focus()
    })
  }))
}
