// Curves beside their baselines; points differ by shape and lines by dashes, so they can be told apart in grey.

const STROKES = [null, "7 3", "2 3", "9 3 2 3", "4 2", "1 2"];

function curvesView() {
  if (!DATA.curves.length) return;
  const home = $("curves");
  home.hidden = false;
  const paints = [];
  home.append(el("h2", { id: "curves-title", text: "Curves" }), el("div", { class: "curves" }, DATA.curves.map((curve, n) => {
    const name = `curve-${n + 1}`, box = el("div", { class: "scroll" });
    paints.push([box, () => box.replaceChildren(curvePicture(curve, clamp(roomOf(box), LEAST, 760)))]);
    return el("figure", { "aria-labelledby": `${name}-title` }, el("h3", { id: `${name}-title`, text: shorten(curve.title, 80) }), curve.about ? el("p", { class: "about" }, folded(curve.about, 300)) : null,
      box, exportsOf(name, () => sheet(curve.title, [box.querySelector("svg")]), () => curveRows(curve)),
      el("details", {}, el("summary", { text: "As a table" }), plainTable(curveRows(curve))));
  })));
  for (const [box, paint] of paints) { paint(); fitted(box, paint); }
}

const curveRows = (curve) => [["line", curve.x_title || "x", curve.y_title || "y", "low", "high"], ...curve.lines.flatMap((line) => line.x.map((x, i) => [line.name, x, line.y[i], line.low ? line.low[i] : null, line.high ? line.high[i] : null])),
  ...(curve.levels || []).map(([name, y]) => [name, null, y, null, null])];

function curvePicture(curve, width) {
  const entries = curve.lines.length + (curve.levels || []).length;
  const area = { left: 56, top: 12, width: width - 70, height: 220 }, foot = area.top + area.height + 44;
  const xs = curve.lines.flatMap((line) => line.x), ys = curve.lines.flatMap((line) => [...line.y, ...(line.low || []), ...(line.high || [])]).concat((curve.levels || []).map(([, y]) => y)).filter((v) => !missing(v));
  const log = curve.log_x && xs.every((x) => x > 0);
  const x = axis(xs, area.left, area.left + area.width, log), y = axis(ys, area.top + area.height, area.top);
  const height = foot + entries * 17 + 4;
  const svg = draw("svg", { width, height, viewBox: `0 0 ${width} ${height}`, "font-size": 11, "font-family": FONT, role: "img", "aria-label": `${readable(curve.title)}: ${curve.lines.map((line) => shorten(line.name, 40)).join(", ")}; the numbers are in the table below` });
  svg.append(...frame(area, x, y, shorten((curve.x_title || "") + (log ? ", logarithmic" : ""), Math.floor(area.width / 6)), shorten(curve.y_title || "", 40)));
  (curve.levels || []).forEach(([name, level], n) => {
    svg.append(draw("path", { d: `M${area.left} ${y(level)}H${area.left + area.width}`, stroke: "#000000", "stroke-dasharray": "1 3" }), key(name, foot + (curve.lines.length + n) * 17, "#000000", "1 3", null));
  });
  curve.lines.forEach((line, n) => svg.append(...lineOf(line, n, x, y), key(line.name, foot + n * 17, inkOf(line, n), line.kind === "points" ? "0 99" : strokeOf(line, n), n)));
  return svg;
}

const inkOf = (line, n) => (line.kind === "baseline" ? "#777777" : INKS[n % INKS.length]);
const strokeOf = (line, n) => (line.kind === "baseline" ? "4 4" : STROKES[n % STROKES.length]);

function mark(n, x, y, ink) {
  const d = [`M${x - 3} ${y}a3 3 0 1 0 6 0a3 3 0 1 0 -6 0`, `M${x - 3} ${y - 3}h6v6h-6Z`, `M${x} ${y - 4}L${x + 4} ${y}L${x} ${y + 4}L${x - 4} ${y}Z`, `M${x} ${y - 4}L${x + 4} ${y + 3}H${x - 4}Z`][n % 4];
  return draw("path", { d, fill: n >= 4 ? "#ffffff" : ink, stroke: ink });
}

function lineOf(line, n, x, y) {
  const ink = inkOf(line, n), points = line.x.map((v, i) => [v, line.y[i], i]).filter(([, v]) => !missing(v));
  const out = [];
  if (line.low && line.high) {
    const whole = points.filter(([, , i]) => !missing(line.low[i]) && !missing(line.high[i]));
    const path = [...whole.map(([v, , i]) => `${x(v)} ${y(line.high[i])}`), ...[...whole].reverse().map(([v, , i]) => `${x(v)} ${y(line.low[i])}`)];
    if (path.length) out.push(draw("path", { d: `M${path.join("L")}Z`, fill: ink, "fill-opacity": 0.15 }));
  }
  if (line.kind !== "points" && points.length) out.push(draw("path", { d: `M${points.map(([v, w]) => `${x(v)} ${y(w)}`).join("L")}`, fill: "none", stroke: ink, "stroke-width": 1.8, "stroke-dasharray": strokeOf(line, n) }));
  if (points.length <= 120) out.push(...points.map(([v, w, i]) => tipped(mark(n, x(v), y(w), ink), () => [shorten(line.name, 60), `${number(v)}: ${number(w)}`, line.low && !missing(line.low[i]) ? `interval ${number(line.low[i])} to ${number(line.high[i])}` : ""])));
  return out;
}

const key = (name, y, ink, dashes, n) => draw("g", {}, draw("path", { d: `M60 ${y}H88`, stroke: ink, "stroke-width": 1.8, "stroke-dasharray": dashes }), n === null ? null : mark(n, 74, y, ink), draw("text", { x: 96, y: y + 4, text: shorten(name, 50) }));
