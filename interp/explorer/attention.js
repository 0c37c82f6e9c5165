// Stored attention weights of a head on an example: bytes times the scale of their head, or the largest keys of each row.

const blockBytes = new Map(), attentions = new Map();
const blockWhole = (block) => block.width > 0 && (block.rows || DATA.examples[block.example].tokens).length > 0;
const BLOCKS = HEADS.map(() => []); // by head: block and place in it
DATA.patterns.forEach((block, n) => blockWhole(block) && block.sites.forEach((site, h) => BLOCKS[BY_SITE.get(site)].push([n, h])));

function unpacked(n) {
  if (!blockBytes.has(n)) {
    const block = DATA.patterns[n];
    blockBytes.set(n, { weights: bytesOf(block.bytes), indices: block.indices ? new Uint32Array(bytesOf(block.indices).buffer) : null });
  }
  return blockBytes.get(n);
}

// The attention of a head on an example, or null: rows are query positions, weights come by position.
function attentionOf(head, example) {
  const found = head === null ? undefined : BLOCKS[head].find(([n]) => DATA.patterns[n].example === example);
  if (found === undefined) return null;
  const name = found.join("/");
  if (!attentions.has(name)) attentions.set(name, readAttention(...found));
  return attentions.get(name);
}

function readAttention(n, h) {
  const block = DATA.patterns[n], { weights, indices } = unpacked(n);
  const wide = block.width, tokens = DATA.examples[block.example].tokens.length;
  const rows = block.rows || Array.from({ length: tokens }, (_, i) => i), keys = block.keys || Array.from({ length: tokens }, (_, i) => i);
  const start = h * rows.length * wide, end = start + rows.length * wide, rowAt = new Map(rows.map((at, r) => [at, r]));
  const mine = indices ? indices.subarray(start, end) : null, bytes = weights.subarray(start, end);
  const keyAt = mine ? null : new Map(keys.map((at, k) => [at, k]));
  const most = block.tops ? block.tops[h] : block.scale, weight = (byte) => (byte * most) / 255;
  const row = (position) => {
    const r = rowAt.get(position);
    if (r === undefined) return null;
    const out = new Map();
    for (let i = r * wide; i < (r + 1) * wide; i++) if (!mine) out.set(keys[i - r * wide], weight(bytes[i])); else if (bytes[i]) out.set(mine[i], weight(bytes[i]));
    return out;
  };
  const received = (position) => {
    const out = new Map(rows.map((query) => [query, 0]));
    if (mine) { for (let i = 0; i < mine.length; i++) if (mine[i] === position) out.set(rows[Math.floor(i / wide)], weight(bytes[i])); }
    else if (keyAt.has(position)) rows.forEach((query, r) => out.set(query, weight(bytes[r * wide + keyAt.get(position)])));
    return out;
  };
  const looked = mine ? [...new Set(mine.filter((_, i) => bytes[i]))] : keys;
  const places = [...new Set([...rows, ...looked])].sort((a, b) => a - b);
  const nearest = (indices || keys).reduce((least, key) => Math.min(least, key), tokens), across = nearest > rows[rows.length - 1];
  const largest = (some) => weight(some.reduce((most, byte) => Math.max(most, byte), 0));
  const top = largest(bytes) || block.scale, later = largest(bytes.subarray(Math.floor(rows.length / 8) * wide)) || top;
  return { rows, keys, across, row, received, places, example: block.example, scale: block.scale, most, top, later, sampled: Boolean(block.rows || block.keys || indices), partial: Boolean(indices), wide, tokens, bytes, indices: mine, nearest: across ? nearest : 0,
    rowOf: (position) => rowAt.get(position) ?? null };
}

const examplesOf = (head) => [...new Set(BLOCKS[head].map(([n]) => DATA.patterns[n].example))].sort((a, b) => a - b);
const TOWER_EXAMPLES = TOWERS.map((_, t) => [...new Set(HEADS.flatMap((head, i) => (head.tower === t ? examplesOf(i) : [])))].sort((a, b) => a - b));

// The chosen example, or that of the same number in the head's own tower; null where this head's pattern was not kept.
function keptExample(head) {
  const mine = TOWER_EXAMPLES[HEADS[head].tower], home = TOWER_EXAMPLES.find((some) => some.includes(state.example)) || [];
  const wanted = mine.includes(state.example) ? state.example : mine[home.indexOf(state.example)] ?? mine[0];
  return examplesOf(head).includes(wanted) ? wanted : null;
}
const exampleShown = (head) => (head === null ? null : keptExample(head) ?? examplesOf(head)[0] ?? null);
// The weight that the darkest colour stands for: one for all heads of a block, or the head's own largest, the first rows
// left out, which have few keys to choose from and so large weights in every head.
const scaleOf = (found) => (state.own ? found.later : found.scale);

const scaleKey = (scale, whose) => weightKey(scale ?? "largest", [whose, state.root ? "square root" : ""].filter(Boolean).join(", "));

// The token that weights are shown of: the locked one, else the class token of a picture or the last row that is there.
const tokenShown = (found) => (state.token !== null && state.token < found.tokens ? state.token : firstQuery(found) ?? found.rows[found.rows.length - 1]);
const weightsAt = (found, position, way = state.way) => (way === "from" ? found.row(position) : found.received(position));

function lockedAttention() {
  const example = exampleShown(state.head), found = example === null ? null : attentionOf(state.head, example);
  if (!found) return null;
  const position = tokenShown(found), weights = weightsAt(found, position), tokens = DATA.examples[example].tokens;
  return { example: DATA.examples[example].name, token: position, text: tokens[position], way: state.way === "from" ? "attends to" : "attended from", scale: found.scale,
    weights: weights === null ? null : [...weights].filter(([, w]) => w > 0).map(([at, weight]) => ({ position: at, text: tokens[at], weight: Number(weight.toPrecision(4)) })) };
}

function attentionRows() {
  const locked = lockedAttention();
  return [["head", "example", "way", "token", "position", "text", "weight"], ...((locked && locked.weights) || []).map((one) => [HEADS[state.head].site, locked.example, locked.way, locked.token, one.position, one.text, one.weight])];
}

// The pattern in at most so many rows and columns; where several weights share a cell it has the largest of them.
function raster(found, most) {
  const all = found.partial ? found.tokens - found.nearest : found.wide;
  const rows = Math.min(found.rows.length, most), columns = Math.min(all, most), cells = new Uint8Array(rows * columns);
  for (let i = 0; i < found.bytes.length; i++) {
    const r = Math.floor(i / found.wide), key = found.partial ? found.indices[i] - found.nearest : i - r * found.wide;
    const at = Math.floor((r * rows) / found.rows.length) * columns + Math.floor((key * columns) / all);
    if (found.bytes[i] > cells[at]) cells[at] = found.bytes[i];
  }
  const query = (r) => found.rows[Math.floor((r * found.rows.length) / rows)];
  const key = (k) => (found.partial ? found.nearest + Math.floor((k * all) / columns) : found.keys[Math.floor((k * all) / columns)]);
  const line = (position, way) => {
    if (way === "from") { const r = found.rowOf(position); return r === null ? -1 : Math.floor((r * rows) / found.rows.length); }
    const k = found.partial ? position - found.nearest : found.keys.indexOf(position);
    return k < 0 || k >= all ? -1 : Math.floor((k * columns) / all);
  };
  return { rows, columns, cells, query, key, line, whole: rows === found.rows.length && columns === all };
}

const RAMPS = new Map();
function ramp(root) {
  if (!RAMPS.has(root)) RAMPS.set(root, Array.from({ length: 256 }, (_, byte) => parts(shade(byte, 255, root))));
  return RAMPS.get(root);
}

function paintRaster(canvas, cells, found, scale) {
  canvas.width = cells.columns;
  canvas.height = cells.rows;
  const pen = canvas.getContext("2d"), image = pen.createImageData(cells.columns, cells.rows), colours = ramp(state.root), gain = found.most / scale;
  cells.cells.forEach((byte, i) => { const [red, green, blue] = colours[Math.min(255, Math.round(byte * gain))]; image.data.set([red, green, blue, 255], 4 * i); });
  pen.putImageData(image, 0, 0);
  return canvas;
}

// The whole pattern as a picture: queries down, keys across; `mark` puts the frame on another token.
function matrixPicture(head, found, tokens, { scale = scaleOf(found), room = 300, labels = true } = {}) {
  const cells = raster(found, room), { rows, columns } = cells;
  const size = clamp(Math.floor(room / Math.max(rows, columns)), 1, 16), left = labels && cells.whole && rows <= 40 && size >= 7 ? 92 : labels ? 30 : 4, top = 18;
  const canvas = paintRaster(el("canvas"), cells, found, scale);
  const width = Math.max(left + columns * size + 6, 110), height = top + rows * size + 6;
  const svg = draw("svg", { width, height, viewBox: `0 0 ${width} ${height}`, "font-size": Math.min(10, size), "font-family": FONT, role: "img", class: "pattern",
    "aria-label": `Attention pattern of ${HEADS[head].site}: ${found.rows.length} queries down, ${found.partial ? `the ${found.wide} largest of ${found.tokens - found.nearest}` : found.wide} keys across, weights from 0 to ${number(scale)}` });
  svg.append(draw("image", { href: canvas.toDataURL(), x: left, y: top, width: columns * size, height: rows * size, preserveAspectRatio: "none", "image-rendering": "pixelated" }),
    draw("rect", { x: left, y: top, width: columns * size, height: rows * size, fill: "none", stroke: "#777777" }),
    draw("text", { x: left, y: 12, "font-size": 10, text: left > 30 ? "keys →" : "keys → queries ↓" }), left > 30 ? draw("text", { x: 2, y: 12, "font-size": 10, text: "queries ↓" }) : "");
  if (left > 30) found.rows.forEach((at, r) => svg.append(draw("text", { x: left - 4, y: top + (r + 0.8) * size, "text-anchor": "end", text: piece(tokens[at], 12) })));
  const frame = draw("rect", { fill: "none", stroke: "#000000", "stroke-width": 1.5 });
  svg.append(frame);
  const mark = (position, way = state.way) => {
    const line = cells.line(position, way), box = way === "from" ? [left, top + line * size, columns * size, size] : [left + line * size, top, size, rows * size];
    ["x", "y", "width", "height"].forEach((name, i) => frame.setAttribute(name, box[i]));
    frame.setAttribute("visibility", line < 0 ? "hidden" : "visible");
  };
  const under = (event) => {
    const box = svg.getBoundingClientRect(), r = Math.floor((((event.clientY - box.top) * height) / box.height - top) / size), k = Math.floor((((event.clientX - box.left) * width) / box.width - left) / size);
    return r >= 0 && r < rows && k >= 0 && k < columns ? { query: cells.query(r), key: cells.key(k) } : null;
  };
  return { svg, under, mark };
}

// The pattern answers to the pointer: it tells which token is under it, and a click locks that one.
function hearPattern({ svg, under }, peek, rest) {
  const at = (event) => { const found = under(event); return found && (state.way === "from" ? found.query : found.key); };
  put(svg, { mousemove: (event) => { const here = at(event); if (here !== null) peek(here); }, mouseleave: rest, click: (event) => { const here = at(event); if (here !== null) lockToken(here); } }, []);
}
const lockToken = (at, more = {}) => change({ token: state.token === at && (more.way ?? state.way) === state.way ? null : at, ...more });
