// Where the parts of a circuit stand: a row for each layer, a column for each head, the MLPs in a column of their own. No
// part moves when another share of the edges is shown, or another circuit of the same model.

const MLP = 10 ** 4, TOP = 10 ** 6; // slots and orders as the payload numbers them
const ROW_LABELS = 34, RIM = 26;

const isInner = (node) => node.order >= 0 && node.order < TOP;
const storeyOf = (node) => node.order >> 1;
const stackOf = (node) => (/^([a-z_]+)\.L/.exec(node.id) || ["", ""])[1];

// For each tower of the circuit: how many layers and heads it has, and where its columns begin.
function stacksOf(nodes) {
  let start = 0;
  return [...new Set(nodes.filter(isInner).map(stackOf))].map((name) => {
    const mine = nodes.filter((node) => isInner(node) && stackOf(node) === name), known = mine.find((node) => node.head !== null);
    const tower = known ? TOWERS[HEADS[BY_SITE.get(known.head)].tower] : TOWERS.find((one) => one.name === name), heads = mine.filter((node) => node.slot !== MLP);
    const wide = Math.max(tower ? Math.max(...tower.heads) : 0, ...heads.map((node) => node.slot + 1)), mlp = mine.some((node) => node.slot === MLP);
    const found = { name, start, wide, mlp, layers: Math.max(tower ? tower.layers.length : 0, ...mine.map((node) => storeyOf(node) + 1)) };
    start += wide + (mlp ? 1 : 0);
    return found;
  });
}

function layOut(nodes, room) {
  const stacks = stacksOf(nodes), columns = Math.max(1, stacks.reduce((sum, one) => sum + one.wide + (one.mlp ? 1 : 0), 0)), layers = Math.max(1, ...stacks.map((one) => one.layers));
  const col = clamp((room - ROW_LABELS - 8) / columns, 13, 150), step = clamp(760 / (layers + 2), 15, 58), width = Math.max(ROW_LABELS + columns * col + 8, LEAST), height = (layers + 2) * step + 2 * RIM;
  const middle = ROW_LABELS + (columns * col) / 2, spots = new Map();
  for (const node of nodes) {
    const stack = stacks.find((one) => one.name === stackOf(node)), row = node.order < 0 ? -1 : node.order >= TOP ? layers : storeyOf(node), slot = isInner(node) ? stack.start + (node.slot === MLP ? stack.wide : node.slot) : null;
    spots.set(node.id, { node, row, x: slot === null ? middle : ROW_LABELS + (slot + 0.5) * col, y: height - RIM - (row + 1.5) * step - (node.slot === MLP ? step / 2 : 0) });
  }
  const box = { wide: Math.min(col - 5, 62), high: clamp(step - 7, 8, 24) };
  const label = (node) => (col >= 56 || !isInner(node) ? node.label : col >= 25 ? node.label.replace(/^L\d+\.?\s?/, "") : "");
  return { stacks, layers, col, step, width, height, spots, box, label };
}

// The numbers of layers and heads around the picture, and a dot where a head is that the circuit does not have.
function grounds({ stacks, layers, col, step, width, height, spots }) {
  const taken = new Set([...spots.values()].map((spot) => `${Math.round(spot.x)},${Math.round(spot.y)}`)), every = Math.ceil(20 / col), parts = [];
  const across = (stack, slot) => ROW_LABELS + (stack.start + slot + 0.5) * col, up = (layer) => height - RIM - (layer + 1.5) * step;
  let dots = "";
  for (let layer = 0; layer < layers; layer++) {
    if (layer % 2) parts.push(draw("rect", { x: 0, y: up(layer) - step / 2, width, height: step, fill: "#f4f6f8" }));
    parts.push(draw("text", { x: 28, y: up(layer) + 4, "text-anchor": "end", fill: "#444444", text: `L${layer}` }));
    for (const stack of stacks) for (let slot = 0; slot < stack.wide && layer < stack.layers; slot++) if (!taken.has(`${Math.round(across(stack, slot))},${Math.round(up(layer))}`)) dots += `M${across(stack, slot)} ${up(layer)}h0`;
  }
  for (const y of [RIM - 10, height - 8]) for (const stack of stacks) {
    for (let slot = 0; slot < stack.wide; slot += every) parts.push(draw("text", { x: across(stack, slot), y, "text-anchor": "middle", fill: "#444444", text: stack.wide * col > 60 && slot === 0 ? "H0" : slot }));
    if (stack.mlp && col >= 25) parts.push(draw("text", { x: across(stack, stack.wide), y, "text-anchor": "middle", fill: "#444444", text: "MLP" }));
  }
  return draw("g", { "aria-hidden": "true" }, parts, draw("path", { d: dots || "M0 0", stroke: "#c4c9ce", "stroke-width": 2.5, "stroke-linecap": "round" }));
}

// Everything that flows into some parts, and everything that they flow into; lines count how many steps away they are.
function reach(lines, down, up) {
  const found = new Map();
  const spread = (start, next, end) => {
    const by = new Map();
    lines.forEach((line, n) => by.set(line[next], [...(by.get(line[next]) || []), n]));
    let front = start, seen = new Set(start);
    for (let far = 1; front.length; far++) {
      const reached = [];
      for (const id of front) for (const n of by.get(id) || []) {
        if (!found.has(n)) found.set(n, far);
        if (!seen.has(lines[n][end])) { seen.add(lines[n][end]); reached.push(lines[n][end]); }
      }
      front = reached;
    }
  };
  spread(down, "to", "from");
  spread(up, "from", "to");
  return found;
}
