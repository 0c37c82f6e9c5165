// The circuit: layers as rows, embedding at the bottom, logits on top. What is under the pointer or has the focus shows
// every path down from it and up from it; a slider says how large a score must be.

const DASH = { q: null, k: "7 3", v: "2 3" };
const CROWD = 120; // more lines than this are drawn plainly: dashes and rings come with the paths that are looked at
let followed = null; // a part that is no head and was chosen

const ranked = () => [...DATA.circuit.edges].sort((a, b) => Math.abs(b.score ?? 0) - Math.abs(a.score ?? 0));
const circuitShown = () => (DATA.circuit ? { title: DATA.circuit.title, edges: ranked().slice(0, state.edges) } : null);
const circuitRows = () => [["sender", "receiver", "score"], ...circuitShown().edges.map((edge) => [edge.sender, edge.receiver, edge.score])];

function circuitView() {
  if (!DATA.circuit) return;
  const home = $("circuit"), box = el("div", { class: "scroll" }), list = el("details", {}, el("summary", { text: "The edges as a table" }));
  home.hidden = false;
  const threshold = edgeControls();
  fill(home, el("h2", { id: "circuit-title", text: shorten(DATA.circuit.title || "Circuit", 80) }), DATA.circuit.about ? el("p", { class: "about" }, folded(DATA.circuit.about, 300)) : null,
    el("div", { class: "controls" }, threshold.nodes, exportsOf("circuit", () => sheet(DATA.circuit.title || "Circuit", [box.querySelector("svg")]), circuitRows)), threshold.said, box, list);
  let picture = null;
  const render = () => {
    const held = box.contains(document.activeElement) ? document.activeElement.dataset.part : null;
    picture = circuitPicture(roomOf(box));
    box.replaceChildren(picture.svg);
    if (held) box.querySelector(`[data-part="${held}"]`)?.focus();
    threshold.show();
    list.replaceChildren(list.firstChild);
    if (list.open) list.append(plainTable(circuitRows()));
  };
  list.addEventListener("toggle", () => { if (list.open && list.children.length < 2) list.append(plainTable(circuitRows())); });
  views.push((touched) => { if (touched.has("edges")) render(); else if (touched.has("head") || touched.has("pins")) { followed = null; picture.mark(); } });
  render();
  fitted(box, render);
}

// How many edges: a slider in even steps of their logarithm, or the smallest score that is shown.
function edgeControls() {
  const sizes = ranked().map((edge) => Math.abs(edge.score ?? 0)), most = sizes.length, total = sizes.reduce((sum, size) => sum + size, 0);
  const stops = [...new Set([...Array.from({ length: 121 }, (_, i) => Math.round(most ** (i / 120))), most])], scored = DATA.circuit.edges.some((edge) => !missing(edge.score));
  const slider = el("input", { type: "range", id: "choose-edges", min: 0, max: stops.length - 1, input: () => change({ edges: stops[Number(slider.value)] }) });
  const least = el("input", { type: "number", id: "choose-score", min: 0, step: "any", change: () => change({ edges: Math.max(1, sizes.filter((size) => size >= Number(least.value)).length) }) });
  const said = el("p", { class: "about", "aria-live": "polite" });
  const show = () => {
    const edges = Math.min(state.edges, most), kept = sizes.slice(0, edges).reduce((sum, size) => sum + size, 0);
    slider.value = String(stops.reduce((best, stop, i) => (Math.abs(stop - edges) < Math.abs(stops[best] - edges) ? i : best), 0));
    least.value = String(Number((sizes[edges - 1] ?? 0).toPrecision(3)));
    said.textContent = `${edges} of ${most} edges` + (scored && total ? `, of at least ${number(sizes[edges - 1])} in size, ${Math.round((100 * kept) / total)}% of the sum of all` : "");
    slider.setAttribute("aria-valuetext", said.textContent);
  };
  return { show, said, nodes: [el("label", { class: "choice slide", for: "choose-edges" }, "Largest edges ", slider), scored ? el("label", { class: "choice", for: "choose-score" }, "of size at least ", least) : null] };
}

function circuitPicture(room) {
  const { edges } = circuitShown(), plan = layOut(DATA.circuit.nodes, room), { spots } = plan, top = Math.max(1e-12, ...edges.map((edge) => Math.abs(edge.score ?? 0)));
  const lines = edges.flatMap((edge) => edge.to.map((to) => ({ edge, from: edge.from, to, size: Math.abs(edge.score ?? 0) / top }))), used = new Set(lines.flatMap((line) => [line.from, line.to]));
  const key = circuitKey(edges, plan.height + 14, plan.width), height = plan.height + key.tall + 8;
  const svg = draw("svg", { width: plan.width, height, viewBox: `0 0 ${plan.width} ${height}`, "font-size": 11, "font-family": FONT, role: "group", "aria-label": `${edges.length} edges between ${used.size} parts; arrow keys move` });
  const crowded = lines.length > CROWD, faint = crowded ? clamp(CROWD / lines.length, 0.12, 0.8) : 0.85;
  const plain = lines.map((line, n) => lineOn(line, spots, plan, n, { opacity: clamp(faint + 0.5 * line.size, 0, 0.9), bare: crowded }));
  const under = draw("g", {}, plain), over = draw("g", { "pointer-events": "none" });
  const parts = [...used].map((id) => ({ id, ...spots.get(id), node: partOn(spots.get(id), plan, lines) }));
  svg.append(grounds(plan), under, over, ...parts.map((part) => part.node), key.node);
  const look = (around) => {
    const near = around === null ? null : around.line ? reach(lines, [around.line.from], [around.line.to]).set(lines.indexOf(around.line), 1) : reach(lines, [around.id], [around.id]);
    under.setAttribute("opacity", near === null ? 1 : around.mild ? 0.45 : 0.12);
    const shown = near === null ? [] : [...near].filter(([, far]) => far === 1 || !around.mild).sort((a, b) => b[1] - a[1]);
    over.replaceChildren(...shown.map(([n, far]) => lineOn(lines[n], spots, plan, n, { opacity: far === 1 ? 0.95 : 0.5, bare: far > 1 && crowded, thin: far > 1 })));
    const on = near === null || around.mild ? null : new Set(shown.flatMap(([n]) => [lines[n].from, lines[n].to]).concat(around.id ?? []));
    for (const part of parts) part.node.setAttribute("opacity", on === null || on.has(part.id) ? 1 : 0.22);
  };
  const home = () => { const mine = state.head === null ? null : parts.find((part) => part.node.dataset.head === HEADS[state.head].site); return followed && used.has(followed) ? { id: followed } : mine ? { id: mine.id, mild: true } : null; };
  const mark = () => { for (const part of parts) markPart(part.node, part.spot ?? part); look(home()); };
  plain.forEach((node, n) => { put(node, { pointerenter: () => look({ line: lines[n] }), pointerleave: () => look(home()) }, []); tipped(node, () => lineTip(lines[n])); });
  for (const part of parts) put(part.node, { pointerenter: () => look({ id: part.id }), pointerleave: () => look(home()), focus: (event) => event.target.matches(":focus-visible") && look({ id: part.id }), blur: () => look(home()), click: () => choosePart(part, mark) }, []);
  walkParts(svg, parts, mark);
  mark();
  return { svg, mark };
}

function choosePart(part, mark) {
  const index = part.node.dataset.head ? BY_SITE.get(part.node.dataset.head) : undefined;
  if (index !== undefined) { select(index); return; }
  followed = followed === part.id ? null : part.id;
  mark();
}

// A line from part to part; one that would run through the parts between them goes around.
function lineOn({ edge, from, to, size }, spots, { step, col, box }, n, { opacity, bare, thin = false }) {
  const a = spots.get(from), b = spots.get(to), wide = Math.min(box.wide / 4, 9), end = b.x + ({ q: -wide, v: wide }[edge.via] ?? 0);
  const y1 = a.y - box.high / 2, y2 = b.y + box.high / 2, pull = clamp((y1 - y2) * 0.4, step * 0.3, 90), around = Math.abs(a.x - b.x) < col / 2 && y1 - y2 > 1.4 * step ? (n % 2 ? 1 : -1) * col * 0.55 : 0;
  const stroke = missing(edge.score) ? "#5c6670" : edge.score < 0 ? BLUE[3] : ORANGE[3];
  return draw("g", { class: "edge" }, draw("path", { d: `M${a.x} ${y1}C${a.x + around} ${y1 - pull} ${end + around} ${y2 + pull} ${end} ${y2}`, fill: "none", stroke, "stroke-width": (thin ? 0.5 : 0.7) + (thin ? 1.6 : 3) * size, "stroke-opacity": opacity, "stroke-dasharray": bare ? null : DASH[edge.via] || null }),
    bare || (edge.score ?? 0) >= 0 ? null : draw("circle", { cx: end, cy: y2 + 3, r: 2.6, fill: "#ffffff", stroke, "stroke-width": 1.3 }));
}

const lineTip = ({ edge }) => [`${edge.sender} → ${edge.receiver}`, missing(edge.score) ? "" : `score ${number(edge.score, true)}`, { q: "into queries", k: "into keys", v: "into values" }[edge.via] || ""];

function partOn(spot, plan, lines) {
  const { node, x, y } = spot, { box, label } = plan, text = label(node), wide = isInner(node) ? box.wide : 58, high = isInner(node) ? box.high : 20;
  const into = lines.filter((line) => line.to === node.id), out = lines.filter((line) => line.from === node.id), index = node.head === null ? undefined : BY_SITE.get(node.head);
  const made = draw("g", { role: "button", class: "node", tabindex: -1, "data-part": node.id, "data-head": index === undefined ? null : node.head, "aria-label": `${index === undefined ? node.label : `Head ${node.head}`}, ${into.length} ${into.length === 1 ? "edge" : "edges"} in, ${out.length} out` },
    draw("rect", { x: x - wide / 2, y: y - high / 2, width: wide, height: high, rx: node.slot === MLP || !isInner(node) ? 2 : Math.min(8, high / 2), fill: "#ffffff", stroke: "#222222", "stroke-width": 1 }),
    text ? draw("text", { x, y: y + 4, "text-anchor": "middle", "font-size": clamp(high - 2, 8, 11.5), text }) : null);
  const side = (word, some, name) => (some.length ? `${word} ` + [...some].sort((a, b) => b.size - a.size).slice(0, 4).map((line) => `${line.edge[name]}${missing(line.edge.score) ? "" : ` ${number(line.edge.score, true)}`}`).join(", ") + (some.length > 4 ? ` and ${some.length - 4} more` : "") : "");
  return tipped(made, () => [index === undefined ? node.label : node.head, side("to", out, "receiver"), side("from", into, "sender")]);
}

function markPart(made) {
  const index = made.dataset.head ? BY_SITE.get(made.dataset.head) : undefined, chosen = index !== undefined ? index === state.head : made.dataset.part === followed, rect = made.querySelector("rect");
  made.setAttribute("aria-pressed", String(chosen));
  put(rect, { fill: chosen ? "#fddcae" : "#ffffff", "stroke-width": chosen ? 2.5 : state.pins.includes(index) ? 2 : 1 }, []);
}

// Arrow keys: to the next part of a row, and to the nearest part of the next row that has one.
function walkParts(svg, parts, mark) {
  const stop = (part) => parts.forEach((one) => one.node.setAttribute("tabindex", one === part ? "0" : "-1"));
  const rows = [...new Set(parts.map((part) => part.y))].sort((a, b) => a - b).map((y) => parts.filter((part) => part.y === y).sort((a, b) => a.x - b.x));
  svg.addEventListener("keydown", (event) => {
    const now = parts.find((part) => part.node === event.target);
    if (!now || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Enter" || event.key === " ") { event.preventDefault(); choosePart(now, mark); return; }
    if (event.key === "Escape" && followed !== null) { followed = null; mark(); return; }
    const r = rows.findIndex((row) => row.includes(now)), at = rows[r].indexOf(now);
    const nearest = (row) => row && row.reduce((best, part) => (Math.abs(part.x - now.x) < Math.abs(best.x - now.x) ? part : best));
    const next = { ArrowLeft: () => rows[r][at - 1], ArrowRight: () => rows[r][at + 1], ArrowUp: () => nearest(rows[r - 1]), ArrowDown: () => nearest(rows[r + 1]), Home: () => rows[r][0], End: () => rows[r][rows[r].length - 1] }[event.key];
    if (!next) return;
    event.preventDefault();
    const found = next();
    if (found) { stop(found); found.node.focus(); }
  });
  if (parts.length) stop(parts.find((part) => state.head !== null && part.node.dataset.head === HEADS[state.head].site) ?? rows[rows.length - 1][0]);
}

// What colours, dashes, rings and widths mean.
function circuitKey(edges, top, room) {
  const scored = edges.some((edge) => !missing(edge.score)), into = ["q", "k", "v"].filter((via) => edges.some((edge) => edge.via === via));
  const line = (stroke, dash, ring = false) => (x, y) => [draw("path", { d: `M${x} ${y - 4}h22`, stroke, "stroke-width": 2.2, "stroke-dasharray": dash }), ring ? draw("circle", { cx: x + 22, cy: y - 4, r: 2.6, fill: "#ffffff", stroke, "stroke-width": 1.3 }) : null];
  const items = [...(scored ? [["score above 0", line(ORANGE[3], null)], ["below 0", line(BLUE[3], null, true)]] : []), ...into.map((via) => [{ q: "into queries", k: "into keys", v: "into values" }[via], line("#444444", DASH[via])])];
  return keyRow(items, ROW_LABELS, top, room, 30);
}
