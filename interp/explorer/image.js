// A head's attention over a picture in its own colours, on the grid of patches that the model really has: a patch that is
// pointed at shows where it looks.

const LOOKS = [["on", "weights on the picture"], ["light", "lit where it looks"], ["alone", "weights alone"], ["plain", "the picture alone"]];
Object.assign(state, { picture: "on", flow: false });

// The tokens of an example that its pictures show.
const DRAWN = new Map();
function drawnAt(example) {
  if (!DRAWN.has(example)) DRAWN.set(example, new Set(DATA.images.filter((image) => image.example === example).flatMap((image) => image.positions.filter((at) => at !== null))));
  return DRAWN.get(example);
}

// The row to begin with where every late row is a patch: the class token, or the patch in the middle; else none.
function firstQuery(found) {
  const drawn = drawnAt(found.example), patches = found.rows.filter((at) => drawn.has(at));
  if (!patches.length || !drawn.has(found.rows[found.rows.length - 1])) return null;
  return found.rows.find((at) => !drawn.has(at)) ?? patches[Math.floor(patches.length / 2)];
}

// Attention rolled out over all layers, in the shape of a head's.
const FLOWS = new Map();
function flowOf(example) {
  const flow = DATA.examples[example].rollout;
  if (!flow) return null;
  if (!FLOWS.has(example)) {
    const bytes = bytesOf(flow.bytes), wide = DATA.examples[example].tokens.length;
    const row = (position) => { const r = flow.rows.indexOf(position); return r < 0 ? null : new Map(Array.from({ length: wide }, (_, k) => [k, (bytes[r * wide + k] * flow.tops[r]) / 255])); };
    FLOWS.set(example, { example, rows: flow.rows, row, sampled: flow.rows.length < wide });
  }
  return FLOWS.get(example);
}

// What the map shows of a token: its weights, those of the nearest patch where its own were not kept, or none.
function mapOf(found, image, position, way) {
  const flow = state.flow ? flowOf(found.example) : null, source = flow || found;
  if (way === "to" && !flow) return { weights: found.received(position), query: position, lacking: found.sampled };
  if (source.row(position)) return { weights: source.row(position), query: position };
  const place = (at) => { const n = image.positions.indexOf(at); return [Math.floor(n / image.grid[1]), n % image.grid[1]]; }, [r, c] = place(position);
  const near = image.positions.includes(position) ? source.rows.filter((at) => image.positions.includes(at)).sort((a, b) => Math.hypot(place(a)[0] - r, place(a)[1] - c) - Math.hypot(place(b)[0] - r, place(b)[1] - c))[0] : undefined;
  return near === undefined ? { weights: null, query: position } : { weights: source.row(near), query: near };
}

// The darkest colour of a head: its largest weight on a patch, of queries that are patches and of those that are none.
const LARGEST = new WeakMap();
function largestOn(source, query, way) {
  const drawn = drawnAt(source.example), key = drawn.has(query);
  if (way === "to" && source.top) return source.top;
  if (!LARGEST.has(source)) LARGEST.set(source, new Map());
  const known = LARGEST.get(source);
  if (!known.has(key)) known.set(key, Math.max(1e-9, ...source.rows.filter((at) => drawn.has(at) === key).map((at) => { let most = 0; for (const [to, weight] of source.row(at)) if (weight > most && drawn.has(to)) most = weight; return most; })));
  return known.get(key);
}

const shareOf = (weight, top) => clamp(state.root ? Math.sqrt(weight / top) : weight / top, 0, 1);

function overlay(image, found, head) {
  const [rows, columns] = image.grid, several = DATA.images.filter((one) => one.example === image.example).length > 1, room = roomOf($("card")) - 8;
  const width = Math.round(Math.min(several && room > 560 ? (room - 16) / 2 : room, 640, (560 * image.width) / image.height)), height = Math.round((width * image.height) / image.width);
  const svg = draw("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "grid", "font-family": FONT, "aria-label": `Patches of ${shorten(image.name, 40)}: ${rows} rows, ${columns} columns; arrow keys move, Enter locks` });
  svg.append(hatch(), draw("image", { href: image.src, width, height, preserveAspectRatio: "none", "image-rendering": image.width * 2 < width ? "pixelated" : null, visibility: state.picture === "alone" ? "hidden" : null }));
  const cells = patchesOf(image, width, height, svg), [between, below] = image.borders;
  svg.append(...between.map((at) => draw("path", { class: "tile", d: `M${(at * width) / image.width} 0V${height}` })), ...below.map((at) => draw("path", { class: "tile", d: `M0 ${(at * height) / image.height}H${width}` })));
  const key = el("div", { class: "scroll" }), note = el("span"), minis = miniMaps(image, head);
  let shown = null;
  const show = (position, way = state.way) => {
    const source = state.flow && flowOf(found.example) ? flowOf(found.example) : found, map = mapOf(found, image, position, way), top = largestOn(source, map.query, way);
    shown = { map, position, way };
    for (const cell of cells) paintPatch(cell, map, top, position);
    key.replaceChildren(weightKey(top, source === found ? "this head's scale" : "all layers", state.picture === "light" ? ["#333333", "#ffffff"] : ORANGE));
    note.textContent = map.query !== position ? ` Of ${about(position)} no row was kept: shown is the nearest that was, ${about(map.query)}.` : map.weights === null ? " Of this token no row was kept." : "";
    minis.show(map.query, way);
  };
  const about = (at) => (image.positions.includes(at) ? `patch ${DATA.examples[image.example].tokens[at]}` : piece(DATA.examples[image.example].tokens[at]));
  for (const cell of cells) tipped(cell.node, () => (cell.at === null ? [] : [`row ${cell.row}, column ${cell.column}`, shown && shown.map.weights && shown.map.weights.has(cell.at) ? `${number(shown.map.weights.get(cell.at))} ${shown.way === "from" ? "of the weight of" : "of its weight goes to"} ${about(shown.map.query)}` : "", state.token === null ? "click: stay with this patch" : ""]));
  const outside = DATA.examples[image.example].tokens.length - image.positions.filter((at) => at !== null).length;
  const caption = el("figcaption", {}, el("bdi", { text: shorten(image.name, 60) }), `: ${rows} × ${columns} patches${between.length || below.length ? ` in ${below.length + 1} × ${between.length + 1} tiles` : ""}; ${outside} other tokens beside it.`, note);
  const figure = el("figure", { class: several ? "picture several" : "picture" }, pictureControls(image), el("div", { class: "scroll" }, svg), key, caption, minis.node);
  return { figure, show, hear: (tell, rest) => hearPatches(svg, cells, tell, rest) };
}

function patchesOf(image, width, height, svg) {
  const [rows, columns] = image.grid, cells = [], left = image.across.map((at) => (at * width) / image.width), top = image.down.map((at) => (at * height) / image.height);
  for (let r = 0; r < rows; r++) {
    const line = draw("g", { role: "row" });
    for (let c = 0; c < columns; c++) {
      if (left[c + 1] <= left[c] || top[r + 1] <= top[r]) continue;
      const node = draw("rect", { role: "gridcell", class: "patch", x: left[c], y: top[r], width: left[c + 1] - left[c], height: top[r + 1] - top[r], fill: "none", stroke: "#ffffff", "stroke-width": 0.4, "stroke-opacity": 0.5 });
      line.append(node);
      cells.push({ node, row: r, column: c, at: image.positions[r * columns + c] });
    }
    svg.append(line);
  }
  return cells;
}

// On the picture a patch that is not looked at is left as it is; lit, it is what lies in the dark.
function paintPatch({ node, row, column, at }, { weights, lacking, query }, top, position) {
  const weight = at === null || weights === null || (lacking && !weights.has(at)) ? null : weights.get(at) ?? 0, share = weight === null ? 0 : shareOf(weight, top), chosen = at !== null && (at === position || at === query);
  const looks = { on: [along(ORANGE, 0.3 + 0.7 * share), 0.78 * Math.sqrt(share)], light: ["#000000", 0.8 * (1 - Math.sqrt(share))], alone: [along(ORANGE, share), 1], plain: ["#ffffff", 0] }[state.picture];
  const [fill, opacity] = weight === null ? ["url(#hatch)", state.picture === "plain" ? 0 : 0.45] : looks;
  put(node, { fill, "fill-opacity": opacity.toFixed(3), stroke: chosen ? "#000000" : "#ffffff", "stroke-width": chosen ? 2.5 : 0.4, "stroke-opacity": chosen ? 1 : 0.5, "stroke-dasharray": chosen && at !== query ? "3 2" : "none",
    "aria-label": `row ${row}, column ${column}: ${weight === null ? "no token" : number(weight)}`, "aria-selected": String(at !== null && at === position) }, []);
}

function hearPatches(svg, cells, tell, rest) {
  const stop = roving(svg, cells, (cell) => cell.at !== null && tell(cell.at)), now = cells.find((cell) => cell.at === rest());
  if (now) stop(now);
  for (const { node, at } of cells) {
    if (at === null) continue;
    put(node, { "data-place": at, mouseenter: () => tell(at), mouseleave: () => tell(null), click: () => lockToken(at), keydown: (event) => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); lockToken(at); } if (event.key === "Escape" && state.token !== null) change({ token: null }); } }, []);
  }
}

function pictureControls(image) {
  if (DATA.images.find((one) => one.example === image.example) !== image) return null;
  const menu = el("select", { id: "choose-picture", "data-act": "picture", change: () => change({ picture: menu.value }) }, LOOKS.map(([value, text]) => el("option", { value, text })));
  menu.value = state.picture;
  const flow = el("select", { id: "choose-flow", "data-act": "flow", change: () => change({ flow: flow.value === "flow" }) }, el("option", { value: "head", text: "this head" }), el("option", { value: "flow", text: "rollout of all layers" }));
  flow.value = state.flow ? "flow" : "head";
  return el("div", { class: "controls" }, el("label", { class: "choice", for: "choose-picture" }, "Show ", menu), flowOf(image.example) ? el("label", { class: "choice", for: "choose-flow" }, "Map of ", flow) : null);
}

// The same query in every head of the layer, or of all layers, each map on its own scale.
let everyLayer = false;
function miniMaps(image, head) {
  const mine = HEADS[head], box = el("div", { class: "minis", role: "group", "aria-label": "Maps of heads; a click shows one" }), every = el("input", { type: "checkbox", id: `every-${DATA.images.indexOf(image)}`, change: () => { everyLayer = every.checked; fill(); } });
  every.checked = everyLayer;
  let last = null, made = [];
  const fill = () => {
    const some = HEADS.map((one, i) => [one, i]).filter(([one, i]) => one.tower === mine.tower && (everyLayer || one.layer === mine.layer) && attentionOf(i, image.example));
    made = some.map(([one, i]) => {
      const canvas = el("canvas", { width: image.grid[1], height: image.grid[0], "aria-hidden": "true" }), node = el("button", { type: "button", class: "mini", "data-head": one.site, "aria-pressed": String(i === head), click: () => hold(i) }, canvas, el("span", { text: everyLayer ? `${one.layer}.${one.head}` : one.head }));
      const part = { canvas, node, head: i, top: 0 };
      tipped(node, () => [one.site, `largest weight on a patch here: ${number(part.top)}`]);
      return part;
    });
    box.replaceChildren(...made.map((part) => part.node));
    if (last) show(...last);
  };
  const show = (query, way) => { last = [query, way]; for (const part of made) paintMini(part, image, query, way); };
  fill();
  const sides = Math.max(...TOWERS[mine.tower].heads) > 1 || TOWERS[mine.tower].layers.length > 1;
  return { show, node: sides ? el("div", {}, el("div", { class: "controls" }, el("b", { text: everyLayer ? "Every head here" : `Heads of layer ${mine.layer}` }), el("label", { class: "choice", for: every.id }, every, " all layers"), el("span", { class: "about", text: "the same query, each map on its own scale" })), box) : el("span") };
}

function paintMini(part, image, query, way) {
  const found = attentionOf(part.head, image.example), weights = way === "from" ? found.row(query) : found.received(query), pen = part.canvas.getContext("2d"), pixels = pen.createImageData(image.grid[1], image.grid[0]);
  part.top = weights === null ? 0 : Math.max(0, ...image.positions.map((at) => (at === null ? 0 : weights.get(at) ?? 0)));
  image.positions.forEach((at, n) => { const [red, green, blue] = parts(at === null || weights === null ? "#d8d8d8" : along(ORANGE, shareOf(weights.get(at) ?? 0, part.top || 1))); pixels.data.set([red, green, blue, 255], 4 * n); });
  pen.putImageData(pixels, 0, 0);
  part.node.setAttribute("aria-label", `${HEADS[part.head].site}, largest ${number(part.top)}`);
}
