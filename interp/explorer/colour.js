// Two scales: one for signed numbers, white at zero, and one for sizes. Both run evenly in lightness on either side. BLUE, ORANGE
// and CIVIDIS come from the one table of colours (results/figures/colours.py).


const parts = (hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));

function along(stops, share) {
  const at = clamp(share, 0, 1) * (stops.length - 1);
  const i = Math.min(Math.floor(at), stops.length - 2);
  const [a, b] = [parts(stops[i]), parts(stops[i + 1])];
  return "#" + a.map((v, n) => Math.round(v + (b[n] - v) * (at - i)).toString(16).padStart(2, "0")).join("");
}

function colour(method, value) {
  if (missing(value)) return "url(#hatch)";
  if (method.kind === "signed") return along(value < 0 ? BLUE : ORANGE, Math.abs(value) / (method.bound || 1));
  return along(CIVIDIS, (value - method.low) / (method.bound - method.low || 1));
}

function inkOn(fill) {
  if (!fill.startsWith("#")) return "#000000";
  const [r, g, b] = parts(fill).map((v) => (v / 255) ** 2.2);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.2 ? "#000000" : "#ffffff";
}

// Attention: white to dark orange, from 0 to the largest weight of the block, the same for all of its heads.
const shade = (weight, scale, root) => along(ORANGE, root ? Math.sqrt(weight / scale) : weight / scale);

const hatch = () => draw("defs", {}, draw("pattern", { id: "hatch", width: 6, height: 6, patternUnits: "userSpaceOnUse" },
  draw("rect", { width: 6, height: 6, fill: "#ffffff" }), draw("path", { d: "M0 6L6 0", stroke: "#999999", "stroke-width": 1 })));

function legend(method) {
  const width = 180, steps = 36;
  const from = method.kind === "signed" ? -method.bound : method.low;
  const bar = Array.from({ length: steps }, (_, i) => draw("rect", {
    x: 4 + (i * width) / steps, y: 2, width: width / steps + 0.5, height: 12,
    fill: colour(method, from + ((method.bound - from) * (i + 0.5)) / steps) }));
  const tick = (value, x, anchor) => draw("text", { x, y: 27, "text-anchor": anchor, text: number(value, method.kind === "signed") });
  const words = method.kind === "signed" ? "+ −: beyond the noise; dark outline: interval without 0" : "the same scale for every head";
  const m = METHODS.indexOf(method), checked = ROWS[m].some((_, i) => !missing(score(m, i, "verified")));
  const svg = draw("svg", { class: "legend", width: 330, height: checked ? 76 : 62, viewBox: `0 0 330 ${checked ? 76 : 62}`, "font-size": 11, "font-family": FONT, "aria-hidden": "true" },
    bar, draw("rect", { x: 4, y: 2, width, height: 12, fill: "none", stroke: "#555555", "stroke-width": 0.7 }),
    tick(from, 4, "start"), method.kind === "signed" ? tick(0, 4 + width / 2, "middle") : null, tick(method.bound, 4 + width, "end"),
    draw("text", { x: 4, y: 42, text: shorten(method.unit || "", 50) }), draw("text", { x: 4, y: method.unit ? 57 : 42, fill: "#444444", text: words }),
    checked ? draw("text", { x: 4, y: 71, fill: "#444444", text: "corner: exact patching agrees; cross: it does not" }) : null);
  return svg;
}
