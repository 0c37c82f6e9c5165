// Two columns of tokens with a line from each query to what it looks at, as thick and dark as its weight.

const MOST_LINES = 900, LINED = 60, FAINT = 0.03;

// Of a longer text the queries next to the shown one, and the keys that these give the most weight.
function lined(found, position) {
  const whole = found.rows.length <= LINED && found.places.length <= LINED;
  const near = found.rows.reduce((best, at, r) => (Math.abs(at - position) < Math.abs(found.rows[best] - position) ? r : best), 0);
  const first = clamp(near - LINED / 2, 0, Math.max(0, found.rows.length - LINED)), queries = whole ? found.rows : found.rows.slice(first, first + LINED);
  const sums = new Map();
  for (const query of queries) for (const [key, weight] of found.row(query)) sums.set(key, (sums.get(key) || 0) + weight);
  if (state.way === "to" && sums.has(position)) sums.set(position, Infinity);
  const keys = whole && !found.partial ? found.keys : [...sums].sort((a, b) => b[1] - a[1]).slice(0, LINED).map(([key]) => key).sort((a, b) => a - b);
  return { whole, queries, keys };
}

function linesPicture(head, found, about, position, tell) {
  const { whole, queries, keys } = lined(found, position), scale = scaleOf(found);
  const line = 19, left = 132, right = 268, width = 400, height = Math.max(queries.length, keys.length) * line + 24;
  const y = (i) => 22 + i * line + line / 2, q = new Map(queries.map((at, i) => [at, y(i)])), k = new Map(keys.map((at, i) => [at, y(i)]));
  const svg = draw("svg", { width, height, viewBox: `0 0 ${width} ${height}`, "font-size": 12, "font-family": FONT, role: "group", class: "lines",
    "aria-label": `Lines of ${HEADS[head].site} from ${queries.length} queries on the left to ${keys.length} keys on the right; arrow keys move, Enter locks` });
  const all = queries.flatMap((query) => [...found.row(query)].filter(([key, weight]) => weight > FAINT * scale && k.has(key)).map(([key, weight]) => [query, key, weight])).sort((a, b) => b[2] - a[2]).slice(0, MOST_LINES);
  const strength = (weight) => { const share = Math.min(1, weight / scale); return state.root ? Math.sqrt(share) : share; };
  const stroke = ([query, key, weight], faint) => draw("path", { d: `M${left + 4} ${q.get(query)}L${right - 4} ${k.get(key)}`, fill: "none", stroke: ORANGE[ORANGE.length - (faint ? 2 : 1)], "stroke-width": 0.6 + 3.2 * strength(weight), "stroke-opacity": Math.max(0.08, strength(weight)) });
  const under = draw("g", { "aria-hidden": "true" }, all.map((one) => stroke(one, true))), over = draw("g", { "aria-hidden": "true", class: "chosen" });
  svg.append(draw("text", { x: left, y: 14, "text-anchor": "end", fill: "#444444", text: "looks" }), draw("text", { x: right, y: 14, fill: "#444444", text: "is looked at" }), under, over);
  const cells = [];
  const word = (at, i, column, y) => {
    const way = column ? "to" : "from", x = column ? right : 2;
    const node = draw("g", { role: "button", class: "word", "data-place": at, "data-way": way, "aria-pressed": String(state.token === at && state.way === way), "aria-label": `${column ? "key" : "query"} ${at} ${piece(about.tokens[at])}`,
      mouseenter: () => tell(at, way), focus: () => tell(at, way), mouseleave: () => tell(null), click: () => lockToken(at, { way }) },
      draw("rect", { x, y: y - line / 2 + 1, width: left - 2, height: line - 2, rx: 3, fill: "#ffffff", stroke: "none" }), draw("text", { x: column ? right + 4 : left - 4, y: y + 4, "text-anchor": column ? "start" : "end", text: whole ? piece(about.tokens[at], 16) : column ? `${piece(about.tokens[at], 11)} ${at}` : `${at} ${piece(about.tokens[at], 11)}` }));
    cells.push({ node, row: i, column, at });
    svg.append(node);
  };
  queries.forEach((at, i) => word(at, i, 0, y(i)));
  keys.forEach((at, i) => word(at, i, 1, y(i)));
  const show = (position, way = state.way) => {
    const mine = weightsAt(found, position, way) || new Map();
    const shown = [...mine].filter(([at, weight]) => weight > 0 && (way === "from" ? q.has(position) && k.has(at) : q.has(at) && k.has(position))).map(([at, weight]) => (way === "from" ? [position, at, weight] : [at, position, weight]));
    over.replaceChildren(...shown.map((one) => stroke(one, false)));
    under.setAttribute("opacity", shown.length ? 0.15 : 0.8);
    for (const { node, column, at } of cells) {
      const here = at === position && (column === 1) === (way === "to"), weight = (column === 1) === (way === "from") ? mine.get(at) ?? 0 : 0, fill = here ? "#ffffff" : shade(Math.min(weight, scale), scale, state.root), [box, text] = node.children;
      put(box, { fill, stroke: here ? "#000000" : "none", "stroke-width": here ? 2 : 0 }, []);
      text.setAttribute("fill", inkOn(fill));
    }
  };
  const stop = roving(svg, cells, () => {});
  const now = cells.find((cell) => cell.at === position && (cell.column === 1) === (state.way === "to"));
  if (now) stop(now);
  svg.addEventListener("keydown", (event) => {
    const cell = cells.find((one) => one.node === event.target);
    if (cell && (event.key === "Enter" || event.key === " ")) { event.preventDefault(); lockToken(cell.at, { way: cell.column ? "to" : "from" }); }
    if (event.key === "Escape" && state.token !== null) { event.stopPropagation(); change({ token: null }); }
  });
  return { svg, show, whole, said: whole ? null : `${queries.length} queries around the shown one, and the ${keys.length} keys that these give the most weight.` };
}
