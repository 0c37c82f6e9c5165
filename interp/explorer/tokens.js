// A text as tokens, each in the colour of its weight. Of a long text a part is on the page at a time; its other parts are
// reached from an overview of the whole, by number, by word, and from the keys with the most weight.

const SHOWN_TOKENS = 240;
let reading = { example: null, start: 0, near: null }; // where the reader is in a long text

const windowAround = (at, total) => clamp(at - Math.floor(SHOWN_TOKENS / 2), 0, Math.max(0, total - SHOWN_TOKENS));

// More words than are on the page at a time; patches do not count, which are in their picture.
const isLong = (found) => found.tokens - drawnAt(found.example).size > SHOWN_TOKENS;

// The first token that is on the page: where the reader went, unless the locked token has changed since.
function startOf(example, position, total) {
  const seen = position >= reading.start && position < reading.start + SHOWN_TOKENS;
  if (reading.example !== example || (reading.near !== position && !seen)) reading = { example, start: windowAround(position, total) };
  reading.near = position;
  return reading.start;
}

function tokenStrip(example, found, about, tell) {
  const node = el("div", { class: isLong(found) ? "tokens long" : "tokens", role: "group", "aria-label": "Tokens; Enter locks one, Escape lets go" });
  const strip = { node, cells: [] };
  strip.fill = (rest) => {
    const drawn = drawnAt(example), start = isLong(found) ? startOf(example, rest, found.tokens) : 0, end = isLong(found) ? Math.min(found.tokens, start + SHOWN_TOKENS) : found.tokens, nodes = [];
    strip.cells = [];
    for (let at = start, inside = 0; at < end; at++) {
      if (drawn.has(at)) { // patches are in the picture
        inside++;
        if (!drawn.has(at + 1) || at + 1 === end) { nodes.push(gap(inside, "patches, in the picture")); inside = 0; }
        continue;
      }
      const one = el("button", { type: "button", class: found.sampled && found.rows.length < found.tokens && found.rowOf(at) !== null ? "token kept" : "token", "data-place": at, "aria-pressed": String(state.token === at), title: `${at}${about.roles ? ` ${shorten(about.roles[at], 40)}` : ""}`,
        mouseenter: () => tell(at), focus: () => tell(at), mouseleave: () => tell(null), click: () => lockToken(at) }, el("bdi", { text: piece(about.tokens[at]) }));
      nodes.push(one);
      strip.cells.push({ node: one, row: 0, column: strip.cells.length, at });
    }
    node.replaceChildren(start ? gap(start, "before") : "", ...nodes, end < found.tokens ? gap(found.tokens - end, "after") : "");
    const home = strip.cells.find((cell) => cell.at === rest);
    for (const cell of strip.cells) cell.node.setAttribute("tabindex", cell === (home || strip.cells[0]) ? "0" : "-1");
  };
  strip.shade = (position) => shadeTokens(strip.cells, found, position);
  node.addEventListener("keydown", (event) => { walkTokens(event, strip); });
  return strip;
}

const gap = (count, where) => el("span", { class: "gap", text: `… ${count.toLocaleString("en")} ${where} …` });

function walkTokens(event, strip) {
  const now = strip.cells.findIndex((cell) => cell.node === event.target), last = strip.cells.length - 1;
  if (now < 0 || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "Escape" && state.token !== null) { event.stopPropagation(); change({ token: null }); return; }
  const to = { ArrowLeft: now - 1, ArrowUp: now - 1, ArrowRight: now + 1, ArrowDown: now + 1, Home: 0, End: last }[event.key];
  if (to === undefined) return;
  event.preventDefault();
  const next = strip.cells[to];
  if (!next) return;
  strip.cells[now].node.setAttribute("tabindex", "-1");
  next.node.setAttribute("tabindex", "0");
  next.node.focus();
}

function shadeTokens(cells, found, position) {
  const weights = weightsAt(found, position), scale = scaleOf(found);
  for (const { node, at } of cells) {
    const weight = weights === null ? undefined : weights.get(at);
    const fill = weight === undefined ? null : shade(Math.min(weight, scale), scale, state.root);
    node.style.backgroundColor = fill ?? "";
    node.style.color = fill ? inkOn(fill) : "";
    node.classList.toggle("here", at === position);
    node.setAttribute("aria-label", `${at} ${node.textContent}` + (weight ? ` ${number(weight)}` : "") + (at === position ? ", shown" : ""));
  }
}

// Above a long text: what the shown token looks at in all of it, the part that is on the page, and ways to go elsewhere.
function overviewOf(example, found, about, jump) {
  if (!isLong(found)) return null;
  const bins = Math.min(600, found.tokens), canvas = el("canvas", { "aria-hidden": "true", width: bins, height: 1 }), seen = el("div", { class: "seen" });
  const place = (at) => `${(100 * at) / found.tokens}%`;
  const slider = el("input", { type: "range", "data-act": "part", min: 0, max: found.tokens - SHOWN_TOKENS, step: 1, "aria-label": "Part of the text that is shown", input: () => { reading.start = Number(slider.value); overview.moved(); } });
  const next = (by, text) => el("button", { type: "button", click: () => { reading.start = clamp(reading.start + by, 0, found.tokens - SHOWN_TOKENS); overview.moved(); }, text });
  const said = el("output", { class: "about", "aria-live": "polite" });
  const box = el("input", { type: "search", id: "go-to", class: "go", placeholder: "number or word", keydown: (event) => { if (event.key === "Enter") { event.preventDefault(); go(); } } });
  const go = () => {
    const wanted = box.value.trim(), place = /^\d+$/.test(wanted) ? Number(wanted) : nextWord(about.tokens, wanted, reading.jumped ?? reading.start - 1);
    if (wanted && place !== null && place < found.tokens) { said.textContent = ""; jump(place, box); } else said.textContent = wanted ? `No token is or holds ${shorten(wanted)}.` : "";
  };
  const node = el("div", { class: "overview" }, el("div", { class: "whole-text", click: (event) => { const area = canvas.getBoundingClientRect(); reading.start = windowAround(Math.floor(((event.clientX - area.left) / area.width) * found.tokens), found.tokens); overview.moved(); } }, canvas, seen), slider,
    el("div", { class: "controls" }, next(-SHOWN_TOKENS, "← earlier"), next(SHOWN_TOKENS, "later →"), el("label", { class: "choice", for: "go-to" }, "Go to ", box), said));
  const overview = { node, moved: () => {} };
  overview.show = (position) => {
    const weights = weightsAt(found, position) || new Map(), scale = scaleOf(found), most = new Float64Array(bins), pen = canvas.getContext("2d"), image = pen.createImageData(bins, 1), colours = ramp(state.root);
    for (const [at, weight] of weights) { const bin = Math.floor((at * bins) / found.tokens); most[bin] = Math.max(most[bin], weight); }
    most.forEach((weight, bin) => image.data.set([...colours[Math.min(255, Math.round((255 * weight) / scale))], 255], 4 * bin));
    pen.putImageData(image, 0, 0);
    seen.style.left = place(reading.start);
    seen.style.width = place(Math.min(SHOWN_TOKENS, found.tokens));
    slider.value = String(reading.start);
    slider.setAttribute("aria-valuetext", `tokens ${reading.start} to ${Math.min(found.tokens, reading.start + SHOWN_TOKENS) - 1} of ${found.tokens}`);
  };
  return overview;
}

// The next token after a place that holds a word, from the beginning again after the last one.
function nextWord(tokens, word, after) {
  const wanted = word.toLowerCase();
  for (let step = 1; step <= tokens.length; step++) { const at = (after + step + tokens.length) % tokens.length; if (tokens[at].toLowerCase().includes(wanted)) return at; }
  return null;
}

// What a token looks at most, each a button that goes there.
function saidAbout(said, found, about, position, jump, way = state.way) {
  const weights = weightsAt(found, position, way), long = isLong(found);
  const token = el("p", {}, el("b", { text: `${position} ` }), about.tokens[position] === "" ? "(empty)" : folded(about.tokens[position]), about.roles ? ` (${shorten(about.roles[position], 40)})` : "", state.token === position ? ", locked" : "");
  if (weights === null) {
    const near = found.rows.reduce((best, at) => (Math.abs(at - position) < Math.abs(best - position) ? at : best));
    said.replaceChildren(token, el("p", {}, "This row is not in the sample. ", el("button", { type: "button", "data-act": "nearest", click: () => { change({ token: near }); jump(near); }, text: `The nearest that is: ${near} ${piece(about.tokens[near])}` })));
    return;
  }
  const top = [...weights].filter(([, w]) => w > 0).sort((a, b) => b[1] - a[1]).slice(0, long ? 8 : 5);
  const around = (from, to) => about.tokens.slice(Math.max(0, from), to).map((text) => shorten(text, 12)).join("").replaceAll("␣", " ");
  said.replaceChildren(token, el("p", { text: way === "from" ? "attends most to" : "is attended to most from" }),
    el("ol", { class: "top" }, top.map(([at, weight]) => el("li", {}, el("button", { type: "button", class: "piece jump", "aria-label": `Go to ${piece(about.tokens[at])} at ${at}`, click: () => jump(at, null, position) }, el("bdi", { text: piece(about.tokens[at]) })), ` at ${at}: ${number(weight)}`,
      long ? el("span", { class: "around" }, ` …${around(at - 4, at)}`, el("b", { text: around(at, at + 1) }), `${around(at + 1, at + 4)}…`) : null))));
}
