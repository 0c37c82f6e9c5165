// Stored attention weights of a head on an example: bytes times one scale a block, or the largest keys of each row.

const blockBytes = new Map();

function unpacked(n) {
  if (!blockBytes.has(n)) {
    const block = DATA.patterns[n];
    blockBytes.set(n, { weights: bytesOf(block.bytes), indices: block.indices ? new Uint32Array(bytesOf(block.indices).buffer) : null });
  }
  return blockBytes.get(n);
}

const blocksOf = (head) => DATA.patterns.map((block, n) => [block, n]).filter(([block]) => block.sites.includes(HEADS[head].site));

// The attention of a head on an example, or null: rows are query positions, weights come by position.
function attentionOf(head, example) {
  const found = head === null ? null : blocksOf(head).find(([block]) => block.example === example);
  if (!found) return null;
  const [block, n] = found, { weights, indices } = unpacked(n);
  const h = block.sites.indexOf(HEADS[head].site), wide = block.width, tokens = DATA.examples[example].tokens.length;
  const rows = block.rows || Array.from({ length: tokens }, (_, i) => i), keys = block.keys || Array.from({ length: tokens }, (_, i) => i);
  const offset = (r) => (h * rows.length + r) * wide;
  const row = (position) => {
    const r = rows.indexOf(position);
    if (r < 0) return null;
    const out = new Map();
    for (let k = 0; k < wide; k++) {
      const weight = (weights[offset(r) + k] * block.scale) / 255;
      if (indices) { if (weight > 0) out.set(indices[offset(r) + k], weight); } else out.set(keys[k], weight);
    }
    return out;
  };
  const received = (position) => new Map(rows.map((query) => [query, row(query).get(position) ?? 0]));
  const places = indices ? [...new Set([...rows, ...indices])].sort((a, b) => a - b) : [...new Set([...rows, ...keys])].sort((a, b) => a - b);
  const nearest = (indices || keys).reduce((least, key) => Math.min(least, key), tokens), across = nearest > rows[rows.length - 1];
  return { rows, keys, across, row, received, places, scale: block.scale, sampled: Boolean(block.rows || block.keys || indices), partial: Boolean(indices), wide,
    byte: (r, k) => weights[offset(r) + k] };
}

const examplesOf = (head) => [...new Set(blocksOf(head).map(([block]) => block.example))].sort((a, b) => a - b);
const exampleShown = (head) => { const some = head === null ? [] : examplesOf(head); return some.includes(state.example) ? state.example : (some[0] ?? null); };

// The token that weights are shown of: the locked one, else the last row that is there.
function tokenShown(found) {
  if (state.token !== null && found.places.includes(state.token)) return state.token;
  return found.rows[found.rows.length - 1];
}
const weightsAt = (found, position) => (state.way === "from" ? found.row(position) : found.received(position));

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

// The whole pattern as a picture: queries down, keys across.
function matrixPicture(found, tokens, position) {
  const rows = found.rows.length, columns = found.wide;
  const size = clamp(Math.floor(300 / Math.max(rows, columns)), 2, 16), left = rows <= 40 && size >= 7 ? 92 : 30, top = 18;
  const canvas = el("canvas", { width: columns, height: rows }), pen = canvas.getContext("2d");
  const image = pen.createImageData(columns, rows);
  for (let r = 0; r < rows; r++) for (let k = 0; k < columns; k++) {
    const [red, green, blue] = parts(shade(found.byte(r, k), 255, state.root));
    image.data.set([red, green, blue, 255], 4 * (r * columns + k));
  }
  pen.putImageData(image, 0, 0);
  const width = left + columns * size + 6, height = top + rows * size + 6;
  const svg = draw("svg", { width, height, viewBox: `0 0 ${width} ${height}`, "font-size": Math.min(10, size), "font-family": FONT, role: "img",
    "aria-label": `Attention pattern of ${HEADS[state.head].site}: ${rows} queries down, ${columns} keys across, weights from 0 to ${number(found.scale)}` });
  svg.append(draw("image", { href: canvas.toDataURL(), x: left, y: top, width: columns * size, height: rows * size, preserveAspectRatio: "none", "image-rendering": "pixelated" }),
    draw("rect", { x: left, y: top, width: columns * size, height: rows * size, fill: "none", stroke: "#777777" }),
    draw("text", { x: left, y: 12, "font-size": 10, text: "keys →" }), draw("text", { x: 2, y: 12, "font-size": 10, text: "queries ↓" }));
  if (left > 30) found.rows.forEach((at, r) => svg.append(draw("text", { x: left - 4, y: top + (r + 0.8) * size, "text-anchor": "end", text: piece(tokens[at], 12) })));
  const mark = state.way === "from" ? found.rows.indexOf(position) : found.keys.indexOf(position);
  if (mark >= 0) svg.append(state.way === "from" ? draw("rect", { x: left, y: top + mark * size, width: columns * size, height: size, fill: "none", stroke: "#000000", "stroke-width": 1.5 })
    : draw("rect", { x: left + mark * size, y: top, width: size, height: rows * size, fill: "none", stroke: "#000000", "stroke-width": 1.5 }));
  const under = (event) => {
    const box = svg.getBoundingClientRect(), r = Math.floor((((event.clientY - box.top) * height) / box.height - top) / size), k = Math.floor((((event.clientX - box.left) * width) / box.width - left) / size);
    return r >= 0 && r < rows && k >= 0 && k < columns ? [r, k] : null;
  };
  return [svg, under];
}
