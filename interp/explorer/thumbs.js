// Every head's pattern, small: the pointer shows a head in its card, a click locks it there.

const POOLED = 64; // cells of a thumbnail

function thumbsView() {
  const home = $("thumbs");
  if (!DATA.patterns.length) { home.hidden = true; return; }
  const grid = el("div", { class: "thumbs", role: "grid", "aria-label": "Patterns of heads; arrow keys move, Enter locks", "aria-describedby": "thumbs-said" });
  const said = el("p", { class: "about", id: "thumbs-said", "aria-live": "polite" }), menus = el("div", { class: "controls" }), key = el("div");
  home.append(el("h2", { id: "thumbs-title", text: "Every head's pattern" }), menus, said, key, grid);
  menus.append(exampleOf(), ...layerAndRole(), ticked("thumbs-own", "own", "own scales"), exportsOf("patterns", () => thumbSheet(grid), () => [["head", "layer", "largest weight", "pattern kept"], ...picked().map((i) => { const found = attentionOf(i, keptExample(i)); return [HEADS[i].site, HEADS[i].layer, found && Number(found.top.toPrecision(4)), Boolean(found)]; })]));
  const seen = typeof IntersectionObserver === "undefined" ? null : new IntersectionObserver((all) => all.filter((one) => one.isIntersecting).forEach(({ target }) => { seen.unobserve(target); paintThumb(target); }), { root: grid, rootMargin: "300px" });
  let cells = [], made = new Map();
  const fill = () => {
    const some = picked(), held = grid.contains(document.activeElement) ? document.activeElement.dataset.head : null;
    cells = thumbRows(grid, some, made);
    const scales = [...new Set(some.map((i) => attentionOf(i, keptExample(i))).filter(Boolean).map((found) => found.scale))];
    key.replaceChildren(!state.own && scales.length === 1 ? scaleKey(scales[0], "all heads") : state.own ? scaleKey(null, "each head's own") : "");
    const now = cells.find((cell) => HEADS[cell.head].site === held) || cells.find((cell) => cell.head === state.head) || cells[0];
    if (now) { stopAt(cells, now); if (held) now.node.focus({ preventScroll: true }); }
    for (const cell of cells) if (seen) seen.observe(cell.node); else paintThumb(cell.node);
    mark();
  };
  const mark = () => {
    said.textContent = thumbWords(cells.map((cell) => cell.head));
    for (const { node, head } of cells) {
      node.setAttribute("aria-selected", String(state.head === head));
      node.classList.toggle("pinned", state.pins.includes(head));
    }
  };
  window.addEventListener("beforeprint", () => cells.forEach(({ node }) => paintThumb(node)));
  hearThumbs(grid, () => cells);
  views.push((touched) => {
    if (["example", "root", "own"].some((name) => touched.has(name))) made = new Map();
    if (["found", "layer", "role", "example", "root", "own"].some((name) => touched.has(name))) fill();
    else if (["head", "pins", "locked"].some((name) => touched.has(name))) mark();
  });
  fill();
}

const layerOf = (head) => HEADS[head].site.replace(/\.H\d+$/, "");
// Heads that the search and the menus leave.
const picked = () => HEADS.map((_, i) => i).filter((i) => (!state.found || state.found.has(i)) && (state.layer === null || layerOf(i) === state.layer || TOWERS[HEADS[i].tower].name === state.layer) && (state.role === null || rolesOf(i).includes(state.role)));

function thumbWords(some) {
  const kept = some.filter((i) => keptExample(i) !== null).length, lost = some.length - kept;
  const scale = state.own ? "each on its own scale" : "the same scale for every head";
  return `${some.length} of ${HEADS.length} heads, ${scale}; queries down, keys across.` + (lost ? ` Of ${lost} ${lost === 1 ? "head" : "heads"} no pattern was kept in this example (hatched).` : "") + (state.locked && state.head !== null ? ` ${HEADS[state.head].site} is locked: click it again or press Esc to look at others by pointing at them.` : "");
}

// Nodes that were made stay, with what is drawn in them, while the filters change.
function thumbRows(grid, some, made) {
  const lines = new Map();
  some.forEach((i) => { const key = `${HEADS[i].tower}/${HEADS[i].layer}`; lines.set(key, [...(lines.get(key) || []), i]); });
  // As large as there are few, and as a layer fits into one line.
  const name = Math.min(12, Math.max(2, ...some.map((i) => layerOf(i).length)) * 0.5 + 0.6), most = Math.max(1, ...[...lines.values()].map((line) => line.length));
  const side = clamp(Math.floor((grid.clientWidth - 15 * name - 24) / most) - 8, 42, some.length <= 24 ? 92 : some.length <= 100 ? 66 : 48);
  grid.style.setProperty("--side", `${side}px`);
  grid.style.setProperty("--name", `${name}em`);
  const cells = [];
  grid.replaceChildren(...[...lines.values()].map((line, row) => {
    const first = HEADS[line[0]], name = `${TOWERS.length > 1 ? `${readable(TOWERS[first.tower].name)} ` : ""}L${first.layer}`;
    return el("div", { role: "row", class: "thumb-row" }, el("span", { role: "rowheader", class: "thumb-layer", text: name }), el("div", { role: "presentation", class: "thumb-line" }, line.map((i, column) => {
      if (!made.has(i)) made.set(i, el("div", { role: "gridcell", class: "thumb", "data-head": HEADS[i].site, tabindex: -1, "aria-label": thumbName(i) }, el("span", { "aria-hidden": "true", text: HEADS[i].head }))), tipped(made.get(i), () => thumbTip(i));
      const node = made.get(i);
      cells.push({ node, row, column, head: i });
      return node;
    })));
  }));
  return cells;
}

const thumbTip = (head) => [`${HEADS[head].site}${state.pins.includes(head) ? ", pinned" : ""}`, rolesOf(head).map((name) => shorten(name)).join(", "), METHODS.length ? inWords(state.metric, head).slice(HEADS[head].site.length + 2) : "",
  attentionOf(head, keptExample(head)) ? "" : "No pattern of it was kept in this example."];

function thumbName(head) {
  const found = attentionOf(head, keptExample(head));
  return `${HEADS[head].site}${rolesOf(head).length ? `, ${shorten(rolesOf(head).join(", "), 40)}` : ""}${found ? `, largest weight ${number(found.top)}` : ", pattern not kept"}`;
}

function paintThumb(node) {
  if (node.querySelector("canvas, .lost")) return;
  const head = BY_SITE.get(node.dataset.head), found = attentionOf(head, keptExample(head));
  if (!found) { node.prepend(el("span", { class: "lost", "aria-hidden": "true" })); return; }
  node.prepend(paintRaster(el("canvas", { "aria-hidden": "true" }), raster(found, POOLED), found, scaleOf(found)));
}

const thumbAt = (event) => { const node = event.target.closest ? event.target.closest(".thumb") : null; return node ? BY_SITE.get(node.dataset.head) : null; };

const stopAt = (cells, now) => { for (const cell of cells) cell.node.setAttribute("tabindex", cell === now ? "0" : "-1"); };

// The thumbnail that an arrow key goes to: beside this one, or the nearest of the next layer.
function thumbBeside(cells, now, key) {
  const line = cells.filter((cell) => cell.row === now.row), at = line.indexOf(now);
  if (key === "Home" || key === "End") return line[key === "Home" ? 0 : line.length - 1];
  if (key === "ArrowLeft" || key === "ArrowRight") return line[at + (key === "ArrowLeft" ? -1 : 1)];
  const next = cells.filter((cell) => cell.row === now.row + (key === "ArrowUp" ? -1 : 1));
  return next[Math.min(now.column, next.length - 1)];
}
const MOVES = ["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown", "Home", "End"];

function hearThumbs(grid, cells) {
  let waiting = null;
  const peek = (head) => { clearTimeout(waiting); waiting = setTimeout(() => { if (!state.locked) change({ peek: head }); }, 60); };
  const choose = (head) => (state.locked && state.head === head ? letGo() : hold(head));
  put(grid, {
    pointerover: (event) => { if (event.pointerType !== "touch" && thumbAt(event) !== null) peek(thumbAt(event)); },
    pointerleave: () => peek(null),
    click: (event) => { const head = thumbAt(event); if (head === null) return; clearTimeout(waiting); if (event.shiftKey) pin(head); else choose(head); },
    focusin: (event) => { if (thumbAt(event) !== null && event.target.matches(":focus-visible")) peek(thumbAt(event)); },
    focusout: () => peek(null),
    keydown: (event) => { const head = thumbAt(event); if (head !== null && (event.key === "Enter" || event.key === " ")) { event.preventDefault(); clearTimeout(waiting); choose(head); }
      if (head === null || !MOVES.includes(event.key) || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      const next = thumbBeside(cells(), cells().find((cell) => cell.head === head), event.key);
      if (next) { stopAt(cells(), next); next.node.focus(); } },
  }, []);
}

// A box for something that is on or off.
function ticked(id, name, text) {
  const box = el("input", { type: "checkbox", id, change: () => change({ [name]: box.checked }) }), show = () => { box.checked = state[name]; };
  views.push((touched) => touched.has(name) && show());
  show();
  return el("label", { class: "choice", for: id }, box, ` ${text}`);
}

function exampleOf() {
  const all = DATA.examples.map((_, i) => i), home = el("span");
  const fill = () => home.replaceChildren(exampleMenu("thumbs-example", all, state.example));
  views.push((touched) => touched.has("example") && fill());
  fill();
  return home;
}

function layerAndRole() {
  const menu = (name, first, values) => {
    const box = el("select", { id: `thumbs-${name}`, change: () => change({ [name]: box.value === "" ? null : box.value }) }, el("option", { value: "", text: first }), values.map((value) => el("option", { value, text: shorten(value, 40) })));
    const show = () => { box.value = state[name] ?? ""; };
    views.push((touched) => touched.has(name) && show());
    show();
    return el("label", { class: "choice", for: `thumbs-${name}` }, `${name === "layer" ? "Layer" : "Role"} `, box);
  };
  const roles = [...new Set(HEADS.flatMap((_, i) => rolesOf(i)))].sort();
  return [menu("layer", "all", [...(TOWERS.length > 1 ? TOWERS.map((one) => one.name) : []), ...new Set(HEADS.map((_, i) => layerOf(i)))]), roles.length ? menu("role", "any", roles) : null].filter(Boolean);
}

// All thumbnails as one picture, in rows of layers as on the page.
function thumbSheet(grid) {
  const side = 64, gap = 6, most = 16, drawn = [];
  let y = 0, wide = 0;
  for (const row of grid.querySelectorAll(".thumb-row")) {
    drawn.push(draw("text", { x: 0, y: y + 12, "font-size": 11, text: row.querySelector(".thumb-layer").textContent }));
    [...row.querySelectorAll(".thumb")].forEach((node, i) => {
      paintThumb(node);
      const canvas = node.querySelector("canvas"), x = 60 + (i % most) * (side + gap), top = y + Math.floor(i / most) * (side + 18);
      wide = Math.max(wide, x + side + gap);
      drawn.push(canvas ? draw("image", { href: canvas.toDataURL(), x, y: top, width: side, height: side, preserveAspectRatio: "none", "image-rendering": "pixelated" }) : "", draw("rect", { x, y: top, width: side, height: side, fill: "none", stroke: "#777777" }),
        draw("text", { x, y: top + side + 11, "font-size": 10, text: node.dataset.head + (canvas ? "" : " not kept") }));
    });
    y += Math.ceil(row.querySelectorAll(".thumb").length / most) * (side + 18);
  }
  return sheet("Patterns of heads", [draw("svg", { width: Math.max(wide, 100), height: y, viewBox: `0 0 ${Math.max(wide, 100)} ${y}` }, drawn)]);
}
