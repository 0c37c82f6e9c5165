// Two scales: one for signed numbers, white at zero, and one for sizes. Both run evenly in lightness on either side. BLUE, ORANGE
// and CIVIDIS come from the one table of colours (results/figures/colours.py).

const SIGNED = [...[...BLUE].reverse(), ...ORANGE.slice(1)];
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

// A bar of colours with its ends, and what else the marks mean.
function scaleBar(stops, x, y, width, height = 12) {
  const steps = 36;
  return [Array.from({ length: steps }, (_, i) => draw("rect", { x: x + (i * width) / steps, y, width: width / steps + 0.5, height, fill: along(stops, (i + 0.5) / steps) })),
    draw("rect", { x, y, width, height, fill: "none", stroke: "#555555", "stroke-width": 0.7 })];
}

// Whether the sign can be trusted: the interval leaves 0 out, or where there is none the value is beyond the noise.
const sure = (m, head) => (missing(score(m, head, "low")) || missing(score(m, head, "high")) ? beyond(m, head) : clear(m, head));

function legend(method) {
  const width = 180, signed = method.kind === "signed", from = signed ? -method.bound : method.low;
  const tick = (value, x, anchor) => draw("text", { x, y: 27, "text-anchor": anchor, text: number(value, signed) });
  const m = METHODS.indexOf(method), has = (name) => ROWS[m].some((_, i) => !missing(score(m, i, name)));
  const words = [shorten(method.unit || "", 44), signed ? (has("low") ? "bold, + or −: the interval leaves out 0; dark outline too" : "bold, + or −: beyond the noise") : "the same scale for every head",
    has("verified") ? "corner: exact patching agrees; cross: it does not" : ""].filter(Boolean);
  const height = 30 + words.length * 15;
  return draw("svg", { class: "legend", width: 290, height, viewBox: `0 0 290 ${height}`, "font-size": 11, "font-family": FONT, "aria-hidden": "true" },
    scaleBar(signed ? SIGNED : CIVIDIS, 4, 2, width), tick(from, 4, "start"), signed ? tick(0, 4 + width / 2, "middle") : null, tick(method.bound, 4 + width, "end"),
    words.map((text, n) => draw("text", { x: 4, y: 42 + 15 * n, fill: n || !method.unit ? "#444444" : "#000000", text })));
}

// What the colours of weights mean, from 0 to the largest.
const weightKey = (top, words, stops = ORANGE) => draw("svg", { class: "legend", width: 290, height: 32, viewBox: "0 0 290 32", "font-size": 11, "font-family": FONT, "aria-hidden": "true" }, scaleBar(stops, 4, 2, 150),
  draw("text", { x: 4, y: 27, text: "0" }), draw("text", { x: 154, y: 27, "text-anchor": "end", text: number(top) }), draw("text", { x: 160, y: 12, fill: "#444444", text: words }));

// Small marks with their words in a row, in as many lines as the room asks for.
function keyRow(items, left, top, room, apart) {
  let x = left, y = top;
  const parts = items.flatMap(([text, mark]) => {
    const wide = apart + 7 + 6 * text.length;
    if (x > left && x + wide > room) { x = left; y += 15; }
    const made = [mark(x, y), draw("text", { x: x + apart, y, text })].flat();
    x += wide + 8;
    return made;
  });
  return { node: draw("g", { class: "legend", "aria-hidden": "true" }, parts), tall: y - top + 20 };
}
