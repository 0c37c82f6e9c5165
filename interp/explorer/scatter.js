// Every head as a point, on two axes of your choice.

const LAYER = -1; // an axis that is no method
const SHAPES = ["circle", "square", "diamond", "triangle"];

function scatterView() {
  const home = $("scatter");
  if (!METHODS.length) { home.hidden = true; return; }
  const box = el("div", { class: "scroll" });
  const first = [[LAYER, "layer"]];
  home.append(el("h2", { id: "scatter-title", text: "Two measures of each head" }),
    el("div", { class: "controls" }, chooser("Across", "x", first), chooser("Up", "y", first), exportsOf("scatter", () => sheet("Heads", [box.querySelector("svg")]), () => scatterRows())), box);
  const render = () => {
    const held = box.contains(document.activeElement);
    const [svg, stop, points] = scatterPicture(roomOf(box));
    box.replaceChildren(svg);
    const now = points.find((one) => one.head === state.head);
    if (now) { stop(now); if (held) now.node.focus(); }
  };
  views.push((touched) => { if (["x", "y", "head", "pins", "found"].some((name) => touched.has(name))) render(); });
  render();
  fitted(box, render);
}

const depth = (head) => (typeof head.layer === "number" ? head.layer : TOWERS[head.tower].layers.indexOf(head.layer));
const onAxis = (axis, head) => (axis === LAYER ? depth(HEADS[head]) : score(axis, head));
const axisName = (axis) => (axis === LAYER ? "layer" : METHODS[axis].name + (METHODS[axis].unit ? ` (${METHODS[axis].unit})` : ""));

function scatterPicture(room) {
  const width = clamp(room, LEAST, 1100), box = { left: 56, top: 12, width: width - 70, height: clamp(Math.round(width * 0.5), 220, 420) }, foot = box.top + box.height + 46;
  const heads = HEADS.map((_, i) => i).filter((i) => !missing(onAxis(state.x, i)) && !missing(onAxis(state.y, i)));
  const [x, y] = [axis(heads.map((i) => onAxis(state.x, i)), box.left, box.left + box.width), axis(heads.map((i) => onAxis(state.y, i)), box.top + box.height, box.top)];
  const svg = draw("svg", { width, height: foot + 34, viewBox: `0 0 ${width} ${foot + 34}`, "font-size": 11, "font-family": FONT, role: "listbox",
    "aria-label": `Heads by ${readable(axisName(state.x))} and ${readable(axisName(state.y))}; arrow keys go from left to right` });
  svg.append(...frame(box, x, y, shorten(axisName(state.x), Math.floor(box.width / 6)), shorten(axisName(state.y), 40)), scatterKey(heads, box.left, foot));
  const order = [...heads].sort((a, b) => onAxis(state.x, a) - onAxis(state.x, b) || onAxis(state.y, a) - onAxis(state.y, b));
  const points = order.map((head, column) => ({ head, row: 0, column, node: point(head, x(onAxis(state.x, head)), y(onAxis(state.y, head))) }));
  const late = (one) => (one.head === state.head ? 2 : state.pins.includes(one.head) ? 1 : 0);
  [...points].sort((a, b) => late(a) - late(b)).forEach((one) => svg.append(one.node));
  svg.append(draw("g", { "aria-hidden": "true", "pointer-events": "none" }, labels(heads, x, y, box)));
  const stop = roving(svg, points, (one) => select(one.head));
  if (!heads.length) svg.append(draw("text", { x: width / 2, y: 140, "text-anchor": "middle", text: "no head has both measures" }));
  return [svg, stop, points];
}

// Names of the chosen head, of pinned ones, and of those farthest from the crowd, where there is room for them.
const NAMED = 12;
function labels(heads, x, y, box) {
  const middle = (axis) => { const some = heads.map((i) => onAxis(axis, i)).sort((a, b) => a - b); return some[some.length >> 1]; };
  const [mx, my] = [x(middle(state.x)), y(middle(state.y))], away = (i) => ((x(onAxis(state.x, i)) - mx) / box.width) ** 2 + ((y(onAxis(state.y, i)) - my) / box.height) ** 2;
  const mine = [state.head, ...state.pins].filter((i) => heads.includes(i));
  const far = heads.filter((i) => !mine.includes(i)).sort((a, b) => away(b) - away(a)).slice(0, NAMED);
  const label = labeller(heads.map((i) => [x(onAxis(state.x, i)), y(onAxis(state.y, i))]), box.left, box.left + box.width);
  return [...new Set([...mine, ...far])].map((i) => label(x(onAxis(state.x, i)), y(onAxis(state.y, i)), state.head === i ? 7 : 5, HEADS[i].site, mine.includes(i))).filter(Boolean);
}

// The colour is a head's layer, the shape its tower.
function scatterKey(heads, left, top) {
  const layers = TOWERS.length === 1 ? TOWERS[0].layers : ["first", "last"], end = layers[layers.length - 1];
  const parts = [draw("text", { x: left, y: top + 11, text: "layer" }), scaleBar(CIVIDIS, left + 34, top + 2, 90, 10), draw("text", { x: left + 34, y: top + 25, text: layers[0] }), draw("text", { x: left + 124, y: top + 25, "text-anchor": "end", text: end })];
  if (TOWERS.length > 1) TOWERS.forEach((tower, t) => parts.push(draw("path", { d: outline(t, left + 146, top + 7 + 13 * (t % 2), 4), fill: "#ffffff", stroke: "#000000", transform: `translate(${80 * Math.floor(t / 2)} 0)` }),
    draw("text", { x: left + 156 + 80 * Math.floor(t / 2), y: top + 11 + 13 * (t % 2), text: shorten(tower.name, 10) })));
  return draw("g", { "aria-hidden": "true", class: "legend" }, parts);
}

function outline(tower, x, y, r) {
  const paths = { circle: `M${x - r} ${y}a${r} ${r} 0 1 0 ${2 * r} 0a${r} ${r} 0 1 0 ${-2 * r} 0`, square: `M${x - r} ${y - r}h${2 * r}v${2 * r}h${-2 * r}Z`,
    diamond: `M${x} ${y - r * 1.3}L${x + r * 1.3} ${y}L${x} ${y + r * 1.3}L${x - r * 1.3} ${y}Z`, triangle: `M${x} ${y - r * 1.2}L${x + r * 1.2} ${y + r}H${x - r * 1.2}Z` };
  return paths[SHAPES[tower % SHAPES.length]];
}

function point(head, x, y) {
  const one = HEADS[head], chosen = state.head === head, pinned = state.pins.includes(head), layers = TOWERS[one.tower].layers;
  const fill = along(CIVIDIS, layers.length > 1 ? layers.indexOf(one.layer) / (layers.length - 1) : 0.5), values = [[state.x, "across"], [state.y, "up"]].map(([axis, way]) => [axis, number(onAxis(axis, head)), way]);
  const node = draw("g", { role: "option", "aria-label": `${one.site}: ${values.map(([, value, way]) => `${value} ${way}`).join(", ")}`, "aria-selected": String(chosen), class: "point", "data-head": one.site, opacity: state.found && !state.found.has(head) ? 0.2 : 1,
    click: (event) => (event.shiftKey ? pin(head) : select(head)) }, draw("path", { d: outline(one.tower, x, y, chosen ? 7 : pinned ? 6 : 4), fill, stroke: "#000000", "stroke-width": chosen ? 2.5 : 0.7 }));
  return tipped(node, () => [one.site, ...values.map(([axis, value]) => `${shorten(axisName(axis), 48)} ${value}`), pinned ? "pinned" : ""]);
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
