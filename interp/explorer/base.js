// Elements, numbers and untrusted text. Text only ever enters through textContent and attributes that are not code.

const SVG = "http://www.w3.org/2000/svg";
const SHORT = 24;

function put(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === "function") node.addEventListener(name, value);
    else if (name === "text") node.textContent = value;
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  node.append(...children.flat(3).filter((child) => child !== null && child !== undefined));
  return node;
}

const el = (tag, attributes, ...children) => put(document.createElement(tag), attributes, children);
const draw = (tag, attributes, ...children) => put(document.createElementNS(SVG, tag), attributes, children);
const fill = (node, ...children) => put(node, {}, children);
const $ = (id) => document.getElementById(id);

const MARKS = new Map([["\n", "↵"], ["\t", "⇥"]]);
const UNSEEN = /[\u0000-\u001f\u007f-\u00a0\u00ad\u061c\u115f\u180e\u200b\u200c\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff\u{e0000}-\u{e007f}]/gu;

// What cannot be seen, or would turn the text around it, as a mark or a code point.
function readable(text) {
  const seen = String(text).replace(UNSEEN, (c) => MARKS.get(c) || `⟨U+${c.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}⟩`);
  return seen.replace(/^ +| +$/g, (blanks) => "␣".repeat(blanks.length));
}

function shorten(text, most = SHORT) {
  const head = readable(String(text).slice(0, 4 * most + 8));
  const points = Array.from(head);
  return points.length <= most && String(text).length <= 4 * most + 8 ? head : points.slice(0, most - 1).join("") + "…";
}

// A token: never nothing at all.
const piece = (text, most = SHORT) => shorten(text, most) || "(empty)";

// A text that may be long: its beginning, and the rest on demand.
function folded(text, most = 60) {
  if (shorten(text, most) === readable(text)) return el("bdi", { text: readable(text) });
  const whole = el("pre", { class: "whole", dir: "ltr" });
  const fill = () => { if (!whole.textContent) whole.textContent = readable(text); };
  return el("details", { class: "folded", toggle: fill },
    el("summary", {}, el("bdi", { text: shorten(text, most) }), ` (${Array.from(String(text)).length.toLocaleString("en")} characters)`), whole);
}

const missing = (value) => value === null || value === undefined || Number.isNaN(value);

function number(value, signed = false) {
  if (missing(value)) return "not measured";
  if (typeof value !== "number") return readable(value);
  if (value === 0) return "0";
  const size = Math.abs(value);
  const plain = size >= 1e5 || size < 1e-3 ? size.toExponential(2) : Number(size.toPrecision(3)).toString();
  return (value < 0 ? "−" : signed ? "+" : "") + plain;
}

function bytesOf(base64) {
  const raw = atob(base64);
  const out = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) out[i] = raw.charCodeAt(i);
  return out;
}

const clamp = (value, low, high) => Math.max(low, Math.min(high, value));

// Moves the focus over a grid of elements with the arrow keys; only one of them is a stop of the tab key.
function roving(container, cells, onMove) {
  const at = new Map(cells.map((cell) => [`${cell.row},${cell.column}`, cell]));
  const rows = Math.max(...cells.map((cell) => cell.row)), columns = Math.max(...cells.map((cell) => cell.column));
  const steps = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
  const here = (node) => cells.find((cell) => cell.node === node);
  const stop = (cell) => { for (const one of cells) one.node.setAttribute("tabindex", one === cell ? "0" : "-1"); };
  container.addEventListener("keydown", (event) => {
    const now = here(event.target);
    if (!now || event.ctrlKey || event.metaKey || event.altKey) return;
    let next = null;
    if (steps[event.key]) {
      let [row, column] = [now.row, now.column];
      const [down, across] = steps[event.key];
      do { row += down; column += across; next = at.get(`${row},${column}`); }
      while (!next && row >= 0 && column >= 0 && row <= rows && column <= columns);
    } else if (event.key === "Home" || event.key === "End") {
      const line = cells.filter((cell) => cell.row === now.row);
      next = event.key === "Home" ? line[0] : line[line.length - 1];
    } else return;
    event.preventDefault();
    if (next) { stop(next); next.node.focus(); onMove(next); }
  });
  if (cells.length) stop(cells[0]);
  return stop;
}
