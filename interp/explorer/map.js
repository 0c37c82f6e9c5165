// Layers down, heads across: one grid a tower, coloured by the method of your choice, as wide as the page allows. Wide
// cells say their number, narrow ones their sign.

const EDGE = 34;

// How large cells are: a tower that is alone takes the room, several stand side by side.
function cellOf(tower, room) {
  const most = Math.max(...tower.heads), last = tower.heads.indexOf(most), alone = TOWERS.length === 1;
  const apart = across(tower, last, most - 1, 0) - EDGE;
  const wide = clamp(Math.floor((room - EDGE - 6 - apart) / most), 8, alone ? 96 : 30);
  return { wide, high: clamp(Math.floor((alone ? 780 : 520) / tower.layers.length), 13, 26) };
}
const groupOf = (tower, layer) => Math.max(1, Math.floor(tower.heads[layer] / tower.kv_heads[layer]));

function mapView() {
  const home = $("map"), grids = el("div", { class: "grids" });
  const said = el("output", { class: "said", "aria-live": "polite", id: "map-said" });
  const key = el("div", { class: "scroll" });
  const about = el("p", { class: "about" });
  const menu = chooser("Colour by", "metric");
  home.append(el("h2", { id: "map-title", text: "Heads by layer" }), el("div", { class: "controls" }, menu, exportsOf("heads", () => mapSheet(), () => mapRows())), about, key, grids, said);
  let cells = [], marked = new Set();
  const marks = () => new Set([state.head, ...state.pins]);
  const build = () => {
    const held = grids.contains(document.activeElement) ? document.activeElement.dataset.head : null;
    grids.replaceChildren();
    cells = TOWERS.map((tower, t) => grid(tower, t, grids)).flat();
    paint();
    if (held) grids.querySelector(`[data-head="${held}"]`)?.focus();
  };
  const paint = (some = null) => {
    for (const cell of cells) if (!some || some.has(cell.head)) paintCell(cell);
    cells.forEach((cell) => cell.head === state.head && cell.stop(cell));
    marked = marks();
  };
  const explain = () => {
    const method = METHODS[state.metric];
    about.replaceChildren(method ? el("b", { class: "printed", text: `${readable(method.name)}. ` }) : "", method ? readable(method.about || "") : "No scores were given.");
    key.replaceChildren(...(method ? [legend(method)] : []));
  };
  views.push((touched) => {
    if (touched.has("metric")) explain();
    if (touched.has("metric") || touched.has("found")) paint();
    else if (touched.has("head") || touched.has("pins")) paint(new Set([...marked, ...marks()]));
    if (touched.has("head") || touched.has("metric")) said.textContent = state.head === null ? "" : METHODS.length ? inWords(state.metric, state.head) : HEADS[state.head].site;
  });
  explain();
  build();
  fitted(grids, build);
}

// Each kv group a little apart from the next.
const across = (tower, layer, head, wide) => {
  const group = groupOf(tower, layer);
  return EDGE + head * wide + (group > 1 ? Math.floor(head / group) * (tower.kv_heads[layer] > 12 ? 2 : 4) : 0);
};

function grid(tower, t, grids) {
  const { wide, high } = cellOf(tower, roomOf(grids)), most = Math.max(...tower.heads), last = tower.heads.indexOf(most);
  const width = across(tower, last, most - 1, wide) + wide + 4, height = tower.layers.length * high + 24, every = Math.ceil(20 / wide);
  const caption = `${tower.name}: ${tower.layers.length} layers, ${most} heads` + (tower.kv_heads[last] < most ? ` over ${tower.kv_heads[last]} kv heads` : "");
  const table = draw("svg", { width, height, viewBox: `0 0 ${width} ${height}`, "font-size": 11, "font-family": FONT, role: "grid",
    "aria-label": `Heads of the tower ${readable(tower.name)}; arrow keys move`, "aria-describedby": "map-said" }, hatch());
  for (let h = 0; h < most; h += every) table.append(draw("text", { x: across(tower, last, h, wide) + wide / 2 - 1, y: 13, "text-anchor": "middle", fill: "#444444", "aria-hidden": "true", text: h }));
  const cells = [];
  tower.layers.forEach((layer, row) => {
    const y = 20 + row * high, middle = y + high / 2 + 3;
    const line = draw("g", { role: "row" }, draw("text", { x: 29, y: middle, "text-anchor": "end", fill: "#444444", "aria-hidden": "true", text: `L${layer}` }));
    HEADS.forEach((head, index) => {
      if (head.tower !== t || head.layer !== layer) return;
      const node = draw("g", { role: "gridcell", class: "cell", "data-head": head.site, transform: `translate(${across(tower, row, head.head, wide)} ${y})`,
        click: (event) => (event.shiftKey ? pin(index) : select(index)), focus: () => { if (state.head !== index) select(index); } });
      line.append(tipped(node, () => headTip(index)));
      cells.push({ node, row, column: head.head, head: index, wide: wide - (wide > 12 ? 3 : 1), high: high - (wide > 12 ? 3 : 1) });
    });
    table.append(line);
  });
  const stop = roving(table, cells, () => {});
  table.addEventListener("keydown", (event) => {
    const now = cells.find((cell) => cell.node === event.target);
    if (now && (event.key === "Enter" || event.key === " ")) { event.preventDefault(); select(now.head); }
    if (now && event.key === "p") pin(now.head);
  });
  for (const cell of cells) cell.stop = stop;
  grids.append(el("figure", { class: "tower" }, el("figcaption", { text: caption }), el("div", { class: "scroll" }, table)));
  return cells;
}

const sign = (value, x, y, r, ink) => draw("path", { d: `M${x - r} ${y}h${2 * r}` + (value < 0 ? "" : `M${x} ${y - r}v${2 * r}`), stroke: ink, "stroke-width": r > 3 ? 1.5 : 1.1, fill: "none" });

function paintCell({ node, head, wide, high }) {
  const m = state.metric, method = METHODS[m], signed = method && method.kind === "signed";
  const value = method ? score(m, head) : null, fill = method ? colour(method, value) : "#ffffff", ink = inkOn(fill);
  const chosen = state.head === head, outlined = method && wide > 12 && clear(m, head), room = Math.min(wide, high);
  const parts = [draw("rect", { width: wide, height: high, fill, stroke: outlined ? "#000000" : "#bbbbbb", "stroke-width": outlined ? 1.6 : wide > 12 ? 0.6 : 0 })];
  const said = !method || missing(value) ? "" : Math.abs(value) < method.bound / 1000 ? "≈ 0" : number(value, signed), fits = said.length * 6.4 < wide - 12;
  if (fits && said) parts.push(draw("text", { x: wide / 2, y: high / 2 + 4, "text-anchor": "middle", "font-size": clamp(high - 3, 9, 11.5), "font-weight": signed && sure(m, head) ? "bold" : "normal", fill: ink, text: said }));
  else if (signed && sure(m, head)) parts.push(sign(value, wide / 2, high / 2, clamp(Math.floor(room / 2 - 2), 2, 5), ink));
  const checked = method && wide > 12 ? score(m, head, "verified") : null;
  if (checked === true) parts.push(draw("path", { d: `M${wide - 7} 1H${wide - 1}V7Z`, fill: ink }));
  if (checked === false) parts.push(draw("path", { d: `M${wide - 7} 2L${wide - 2} 7M${wide - 2} 2L${wide - 7} 7`, stroke: ink, "stroke-width": 1.5 }));
  if (state.pins.includes(head)) parts.push(draw("circle", { cx: 4, cy: 4, r: wide > 12 ? 3 : 2.5, fill: "#ffffff", stroke: "#000000" }));
  if (chosen) parts.push(draw("rect", { x: -2, y: -2, width: wide + 4, height: high + 4, fill: "none", stroke: "#000000", "stroke-width": 3 }), draw("rect", { width: wide, height: high, fill: "none", stroke: "#ffffff", "stroke-width": 1.4 }));
  node.replaceChildren(...parts);
  node.setAttribute("aria-label", method ? inWords(m, head) + (state.pins.includes(head) ? ", pinned" : "") : HEADS[head].site);
  node.setAttribute("aria-selected", String(chosen));
  node.setAttribute("opacity", state.found && !state.found.has(head) ? 0.25 : 1);
}

const mapSheet = () => sheet(METHODS[state.metric] ? METHODS[state.metric].name : "heads", [...$("map").querySelectorAll("svg")]);
const mapRows = () => tableOfScores((row) => METHODS[state.metric] && COLUMNS.method[row] === METHODS[state.metric].name);

// A menu of the methods for one part of the state.
function chooser(label, what, first = []) {
  const id = `choose-${what}`;
  const menu = el("select", { id, change: () => change({ [what]: Number(menu.value) }) },
    first.map(([value, text]) => el("option", { value, text })), METHODS.map((method, i) => el("option", { value: i, text: shorten(method.name, 60) })));
  const show = () => { menu.value = String(state[what]); };
  views.push((touched) => touched.has(what) && show());
  show();
  return el("label", { for: id, class: "choice" }, `${label} `, menu);
}
