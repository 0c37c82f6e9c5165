// The circuit: embedding at the bottom, logits on top, edges between; q, k and v differ by their dashes.

const DASH = { q: null, k: "7 3", v: "2 3" };

const ranked = () => [...DATA.circuit.edges].sort((a, b) => Math.abs(b.score ?? 0) - Math.abs(a.score ?? 0));
const circuitShown = () => (DATA.circuit ? { title: DATA.circuit.title, edges: ranked().slice(0, state.edges) } : null);

function circuitView() {
  if (!DATA.circuit) return;
  const home = $("circuit"), box = el("div", { class: "scroll" }), most = DATA.circuit.edges.length;
  home.hidden = false;
  const slider = el("input", { type: "range", id: "choose-edges", min: 1, max: most, value: Math.min(state.edges, most), input: () => change({ edges: Number(slider.value) }) });
  const count = el("output", { for: "choose-edges" });
  const list = el("details", {}, el("summary", { text: "The edges as a table" }));
  fill(home, el("h2", { id: "circuit-title", text: shorten(DATA.circuit.title || "Circuit", 80) }), DATA.circuit.about ? el("p", { class: "about" }, folded(DATA.circuit.about, 300)) : null,
    el("div", { class: "controls" }, el("label", { class: "choice", for: "choose-edges" }, "Largest edges ", slider, " ", count), exportsOf("circuit", () => sheet(DATA.circuit.title || "Circuit", [box.querySelector("svg")]), circuitRows)),
    box, el("p", { class: "about", text: "Solid lines end in queries, dashed ones in keys, dotted ones in values, grey ones elsewhere; a ring at the end is a negative score; width is size." }), list);
  const render = () => {
    slider.value = String(Math.min(state.edges, most));
    count.textContent = `${Math.min(state.edges, most)} of ${most}`;
    box.replaceChildren(circuitPicture());
    list.replaceChildren(list.firstChild, plainTable(circuitRows()));
  };
  views.push((touched) => { if (["head", "edges", "pins"].some((name) => touched.has(name))) render(); });
  render();
}

const circuitRows = () => [["sender", "receiver", "score"], ...circuitShown().edges.map((edge) => [edge.sender, edge.receiver, edge.score])];

function placed(edges) {
  const nodes = new Map(DATA.circuit.nodes.map((node) => [node.id, node]));
  const used = [...new Set(edges.flatMap((edge) => [edge.from, ...edge.to]))].map((id) => nodes.get(id)).sort((a, b) => a.order - b.order || a.slot - b.slot);
  const layers = [...new Set(used.map((node) => node.order))];
  const widest = Math.max(1, ...layers.map((order) => used.filter((node) => node.order === order).length));
  // Rows stand closer where there are many.
  const width = Math.max(320, widest * 88 + 20), step = clamp(1500 / layers.length, 38, 74), height = layers.length * step + 10;
  const spots = new Map();
  layers.forEach((order, i) => {
    const row = used.filter((node) => node.order === order);
    row.forEach((node, n) => spots.set(node.id, { node, x: ((n + 1) * width) / (row.length + 1), y: height - 30 - i * step }));
  });
  return { spots, width, height };
}

function circuitPicture() {
  const { edges } = circuitShown(), { spots, width, height } = placed(edges);
  const top = Math.max(1e-12, ...edges.map((edge) => Math.abs(edge.score ?? 0)));
  const svg = draw("svg", { width, height, viewBox: `0 0 ${width} ${height}`, "font-size": 12, "font-family": FONT, role: "group", "aria-label": `${edges.length} edges between ${spots.size} parts; heads can be chosen` });
  const mine = state.head === null ? null : HEADS[state.head].site;
  const touches = (edge) => mine !== null && [edge.from, ...edge.to].some((id) => spots.get(id).node.head === mine);
  const lines = edges.flatMap((edge) => edge.to.map((end) => [edge, end, touches(edge)])).sort((a, b) => a[2] - b[2]);
  const some = lines.some(([, , hit]) => hit);
  for (const [edge, end, hit] of lines) {
    const a = spots.get(edge.from), b = spots.get(end), mid = (a.y + b.y) / 2, size = Math.abs(edge.score ?? 0) / top;
    const look = { fill: "none", stroke: hit ? "#a33b00" : edge.via ? "#31587a" : "#8a8a8a", "stroke-width": 0.8 + 3.2 * size, "stroke-opacity": some && !hit ? 0.3 : 0.85, "stroke-dasharray": DASH[edge.via] || null };
    svg.append(draw("g", {}, draw("title", { text: `${edge.sender} → ${edge.receiver}` + (missing(edge.score) ? "" : ` ${number(edge.score, true)}`) }), draw("path", { ...look, d: `M${a.x} ${a.y - 11}C${a.x} ${mid} ${b.x} ${mid} ${b.x} ${b.y + 12}` }),
      (edge.score ?? 0) < 0 ? draw("circle", { cx: b.x, cy: b.y + 16, r: 3.5, fill: "#ffffff", stroke: look.stroke, "stroke-width": 1.4 }) : null));
  }
  for (const { node, x, y } of spots.values()) svg.append(box(node, x, y));
  const order = [...svg.querySelectorAll("[data-head]")];
  roving(svg, order.map((node, i) => ({ node, row: 0, column: i })), () => {});
  const now = order.find((node) => node.dataset.head === mine);
  if (now) order.forEach((node) => node.setAttribute("tabindex", node === now ? "0" : "-1"));
  return svg;
}

function box(node, x, y) {
  const wide = 12 + node.label.length * 3.6, index = node.head === null ? null : BY_SITE.get(node.head);
  const chosen = index !== null && index !== undefined && index === state.head;
  const parts = [draw("rect", { x: x - wide, y: y - 12, width: 2 * wide, height: 24, rx: node.head === null ? 2 : 10, fill: chosen ? "#fddcae" : "#ffffff", stroke: "#222222", "stroke-width": chosen ? 2.5 : state.pins.includes(index) ? 2 : 1 }),
    draw("text", { x, y: y + 4, "text-anchor": "middle", text: node.label })];
  if (index === null || index === undefined) return draw("g", {}, parts);
  const choose = () => select(index);
  return draw("g", { role: "button", class: "node", "data-head": node.head, "aria-pressed": String(chosen), "aria-label": `Head ${node.head}`, click: choose,
    keydown: (event) => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); choose(); $("circuit").querySelector(`[data-head="${node.head}"]`)?.focus(); } } }, parts);
}
