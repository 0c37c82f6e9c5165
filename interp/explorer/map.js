// Layers down, heads across: one grid a tower, coloured by the method of your choice.

// Cells are smaller where there are many, so that a tower can be seen as one picture.
const cellOf = (tower) => (Math.max(...tower.heads) > 24 ? 18 : Math.max(...tower.heads) > 16 ? 21 : 26);

function mapView() {
  const home = $("map"), grids = el("div", { class: "grids" });
  const said = el("output", { class: "said", "aria-live": "polite", id: "map-said" });
  const key = el("div", { class: "scroll" });
  const about = el("p", { class: "about" });
  const menu = chooser("Colour by", "metric");
  home.append(el("h2", { id: "map-title", text: "Heads by layer" }), el("div", { class: "controls" }, menu, exportsOf("heads", () => mapSheet(), () => mapRows())), about, grids, key, said);
  const cells = TOWERS.map((tower, t) => grid(tower, t, grids, said)).flat();
  const paint = () => {
    const method = METHODS[state.metric];
    about.replaceChildren(method ? el("b", { class: "printed", text: `${readable(method.name)}. ` }) : "", method ? readable(method.about || "") : "No scores were given.");
    for (const cell of cells) paintCell(cell);
    key.replaceChildren(...(method ? [legend(method)] : []));
  };
  views.push((touched) => {
    if (["metric", "head", "pins", "found"].some((name) => touched.has(name))) paint();
    if (touched.has("head") && state.head !== null) cells.forEach((cell) => cell.head === state.head && cell.stop(cell));
    if (touched.has("head") || touched.has("metric")) said.textContent = state.head === null ? "" : METHODS.length ? inWords(state.metric, state.head) : HEADS[state.head].site;
  });
  paint();
}

// Each kv group a little apart from the next.
const across = (tower, layer, head) => {
  const group = Math.max(1, Math.floor(tower.heads[layer] / tower.kv_heads[layer]));
  return 34 + head * cellOf(tower) + (group > 1 ? Math.floor(head / group) * 4 : 0);
};

function grid(tower, t, grids, said) {
  const CELL = cellOf(tower), most = Math.max(...tower.heads), last = tower.heads.indexOf(most);
  const width = across(tower, last, most - 1) + CELL + 4, height = tower.layers.length * CELL + 24;
  const caption = `${tower.name}: ${tower.layers.length} layers, ${most} heads` + (tower.kv_heads[last] < most ? ` over ${tower.kv_heads[last]} kv heads` : "");
  const table = draw("svg", { width, height, viewBox: `0 0 ${width} ${height}`, "font-size": 11, "font-family": FONT, role: "grid",
    "aria-label": `Heads of the tower ${readable(tower.name)}; arrow keys move`, "aria-describedby": "map-said" }, hatch());
  for (let h = 0; h < most; h++) table.append(draw("text", { x: across(tower, last, h) + CELL / 2 - 1, y: 13, "text-anchor": "middle", fill: "#444444", "aria-hidden": "true", text: h }));
  const cells = [];
  tower.layers.forEach((layer, row) => {
    const y = 20 + row * CELL, middle = y + CELL / 2 + 3;
    const line = draw("g", { role: "row" }, draw("text", { x: 29, y: middle, "text-anchor": "end", fill: "#444444", "aria-hidden": "true", text: `L${layer}` }));
    HEADS.forEach((head, index) => {
      if (head.tower !== t || head.layer !== layer) return;
      const node = draw("g", { role: "gridcell", class: "cell", "data-head": head.site, transform: `translate(${across(tower, row, head.head)} ${y})`,
        click: (event) => (event.shiftKey ? pin(index) : select(index)), focus: () => { if (state.head !== index) select(index); },
        mouseenter: () => { if (METHODS.length) said.textContent = inWords(state.metric, index); } });
      line.append(node);
      cells.push({ node, row, column: head.head, head: index });
    });
    table.append(line);
  });
  const stop = roving(table, cells, () => {});
  table.addEventListener("keydown", (event) => {
    const now = cells.find((cell) => cell.node === event.target);
    if (now && (event.key === "Enter" || event.key === " ")) { event.preventDefault(); select(now.head); }
    if (now && event.key === "p") pin(now.head);
  });
  for (const cell of cells) cell.stop = (one) => cells.includes(one) && stop(one);
  grids.append(el("figure", { class: "tower" }, el("figcaption", { text: caption }), el("div", { class: "scroll" }, table)));
  return cells;
}

function paintCell({ node, head }) {
  const m = state.metric, method = METHODS[m];
  const value = method ? score(m, head) : null, fill = method ? colour(method, value) : "#ffffff", ink = inkOn(fill);
  const chosen = state.head === head, size = cellOf(TOWERS[HEADS[head].tower]) - 3;
  const parts = [draw("rect", { width: size, height: size, fill, stroke: method && clear(m, head) ? "#000000" : "#bbbbbb", "stroke-width": method && clear(m, head) ? 1.6 : 0.6 })];
  if (method && method.kind === "signed" && beyond(m, head)) parts.push(draw("text", { x: size / 2, y: size / 2 + (size > 16 ? 5 : 4), "text-anchor": "middle", "font-size": size > 16 ? 14 : 12, fill: ink, text: value < 0 ? "−" : "+" }));
  const checked = method ? score(m, head, "verified") : null;
  if (checked === true) parts.push(draw("path", { d: `M${size - 8} 1H${size - 1}V8Z`, fill: ink }));
  if (checked === false) parts.push(draw("path", { d: `M${size - 7} 2L${size - 2} 7M${size - 2} 2L${size - 7} 7`, stroke: ink, "stroke-width": 1.5 }));
  if (state.pins.includes(head)) parts.push(draw("circle", { cx: 5, cy: 5, r: 3, fill: "#ffffff", stroke: "#000000" }));
  if (chosen) parts.push(draw("rect", { x: -2, y: -2, width: size + 4, height: size + 4, fill: "none", stroke: "#000000", "stroke-width": 3 }), draw("rect", { width: size, height: size, fill: "none", stroke: "#ffffff", "stroke-width": 1.4 }));
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
