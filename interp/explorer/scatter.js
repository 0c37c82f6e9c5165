// Every head as a point, on two axes of your choice.

const LAYER = -1; // an axis that is no method
const SHAPES = ["circle", "square", "diamond", "triangle"];

function scatterView() {
  const home = $("scatter");
  if (!METHODS.length) { home.hidden = true; return; }
  const box = el("div", { class: "scroll" }), said = el("output", { class: "said", "aria-live": "off", id: "scatter-said" });
  const first = [[LAYER, "layer"]];
  home.append(el("h2", { id: "scatter-title", text: "Two measures of each head" }),
    el("div", { class: "controls" }, chooser("Across", "x", first), chooser("Up", "y", first), exportsOf("scatter", () => sheet("Heads", [box.querySelector("svg")]), () => scatterRows())), box, said);
  const render = () => {
    const held = box.contains(document.activeElement);
    const [svg, stop, points] = scatterPicture(said);
    box.replaceChildren(svg);
    const now = points.find((one) => one.head === state.head);
    if (now) { stop(now); if (held) now.node.focus(); }
  };
  views.push((touched) => { if (["x", "y", "head", "pins", "found"].some((name) => touched.has(name))) render(); });
  render();
}

const depth = (head) => (typeof head.layer === "number" ? head.layer : TOWERS[head.tower].layers.indexOf(head.layer));
const onAxis = (axis, head) => (axis === LAYER ? depth(HEADS[head]) : score(axis, head));
const axisName = (axis) => (axis === LAYER ? "layer" : METHODS[axis].name + (METHODS[axis].unit ? ` (${METHODS[axis].unit})` : ""));

function scatterPicture(said) {
  const box = { left: 56, top: 12, width: 380, height: 260 };
  const heads = HEADS.map((_, i) => i).filter((i) => !missing(onAxis(state.x, i)) && !missing(onAxis(state.y, i)));
  const [x, y] = [axis(heads.map((i) => onAxis(state.x, i)), box.left, box.left + box.width), axis(heads.map((i) => onAxis(state.y, i)), box.top + box.height, box.top)];
  const svg = draw("svg", { width: 450, height: 318, viewBox: "0 0 450 318", "font-size": 11, "font-family": FONT, role: "listbox",
    "aria-label": `Heads by ${readable(axisName(state.x))} and ${readable(axisName(state.y))}; arrow keys go from left to right` });
  svg.append(...frame(box, x, y, shorten(axisName(state.x), 60), shorten(axisName(state.y), 40)));
  const order = [...heads].sort((a, b) => onAxis(state.x, a) - onAxis(state.x, b) || onAxis(state.y, a) - onAxis(state.y, b));
  const points = order.map((head, column) => ({ head, row: 0, column, node: point(head, x(onAxis(state.x, head)), y(onAxis(state.y, head)), said) }));
  const late = (one) => (one.head === state.head ? 2 : state.pins.includes(one.head) ? 1 : 0);
  [...points].sort((a, b) => late(a) - late(b)).forEach((one) => svg.append(one.node));
  const stop = roving(svg, points, (one) => select(one.head));
  if (!heads.length) svg.append(draw("text", { x: 240, y: 140, "text-anchor": "middle", text: "no head has both measures" }));
  return [svg, stop, points];
}

function point(head, x, y, said) {
  const one = HEADS[head], chosen = state.head === head, pinned = state.pins.includes(head);
  const r = chosen ? 7 : pinned ? 6 : 4;
  const paths = { circle: `M${x - r} ${y}a${r} ${r} 0 1 0 ${2 * r} 0a${r} ${r} 0 1 0 ${-2 * r} 0`, square: `M${x - r} ${y - r}h${2 * r}v${2 * r}h${-2 * r}Z`,
    diamond: `M${x} ${y - r * 1.3}L${x + r * 1.3} ${y}L${x} ${y + r * 1.3}L${x - r * 1.3} ${y}Z`, triangle: `M${x} ${y - r * 1.2}L${x + r * 1.2} ${y + r}H${x - r * 1.2}Z` };
  const words = `${one.site}: ${number(onAxis(state.x, head))} across, ${number(onAxis(state.y, head))} up`;
  const layers = TOWERS[one.tower].layers;
  const fill = along(CIVIDIS, layers.length > 1 ? layers.indexOf(one.layer) / (layers.length - 1) : 0.5);
  const marks = [draw("path", { d: paths[SHAPES[one.tower % SHAPES.length]], fill, stroke: "#000000", "stroke-width": chosen ? 2.5 : 0.7 })];
  if (chosen || pinned) marks.push(draw("text", { x: x > 340 ? x - r - 3 : x + r + 3, y: y + 4, "text-anchor": x > 340 ? "end" : "start", "paint-order": "stroke", stroke: "#ffffff", "stroke-width": 3, fill: "#000000", text: one.site }));
  return draw("g", { role: "option", "aria-label": words, "aria-selected": String(chosen), class: "point", "data-head": one.site, opacity: state.found && !state.found.has(head) ? 0.2 : 1,
    click: (event) => (event.shiftKey ? pin(head) : select(head)), mouseenter: () => { said.textContent = words; } }, marks);
}

// A linear axis over some values, with round ticks; a function from value to place.
function axis(values, from, to, log = false) {
  let low = Math.min(...values, log ? Infinity : 0), high = Math.max(...values, log ? -Infinity : 0);
  if (!values.length || !Number.isFinite(low) || !Number.isFinite(high)) [low, high] = [log ? 0.1 : 0, 1];
  if (low === high) high = log ? low * 10 : low + 1;
  const scale = log ? Math.log10 : (v) => v;
  const pad = (scale(high) - scale(low)) * 0.04;
  const place = (v) => from + ((scale(v) - scale(low) + pad) / (scale(high) - scale(low) + 2 * pad)) * (to - from);
  place.ticks = log ? tens(low, high) : rounds(low, high);
  return place;
}

function rounds(low, high) {
  const rough = (high - low) / 5, unit = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((n) => n * unit).find((one) => one >= rough);
  const found = [];
  for (let v = Math.ceil(low / step - 1e-9) * step; v <= high + step * 1e-6; v += step) found.push(Number(v.toPrecision(12)));
  return found;
}
const tens = (low, high) => Array.from({ length: 40 }, (_, i) => 10 ** (i - 20)).filter((v) => v >= low * 0.999 && v <= high * 1.001);

// The border of a picture with its ticks, the lines through 0, and the names of the axes.
function frame(box, x, y, across, up) {
  const bottom = box.top + box.height, right = box.left + box.width;
  const parts = [draw("rect", { x: box.left, y: box.top, width: box.width, height: box.height, fill: "#ffffff", stroke: "#777777" })];
  for (const v of x.ticks) parts.push(draw("path", { d: `M${x(v)} ${box.top}V${bottom}`, stroke: v === 0 ? "#888888" : "#e4e4e4" }), draw("text", { x: x(v), y: bottom + 14, "text-anchor": "middle", text: number(v) }));
  for (const v of y.ticks) parts.push(draw("path", { d: `M${box.left} ${y(v)}H${right}`, stroke: v === 0 ? "#888888" : "#e4e4e4" }), draw("text", { x: box.left - 5, y: y(v) + 4, "text-anchor": "end", text: number(v) }));
  parts.push(draw("text", { x: box.left + box.width / 2, y: bottom + 32, "text-anchor": "middle", text: across }),
    draw("text", { transform: `translate(12 ${box.top + box.height / 2}) rotate(-90)`, "text-anchor": "middle", text: up }));
  return [draw("g", { "aria-hidden": "true" }, parts)];
}

function scatterRows() {
  const head = ["site", axisName(state.x), axisName(state.y), "selected", "pinned"];
  return [head, ...HEADS.map((one, i) => [one.site, onAxis(state.x, i), onAxis(state.y, i), state.head === i, state.pins.includes(i)])];
}
