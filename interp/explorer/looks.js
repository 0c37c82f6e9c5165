// Where a head looks: tokens or lines, pictures, and the whole pattern, all of them of one token at a time.

function attentionPart(head) {
  const title = el("h3", { text: "Where it looks" }), example = exampleShown(head);
  if (example === null) return [title, el("p", { class: "about", text: "No attention pattern of this head is stored in this page." })];
  const found = attentionOf(head, example), about = DATA.examples[example], position = tokenShown(found);
  const said = el("div", { class: "said", "aria-live": "polite" });
  const overlays = DATA.images.filter((image) => image.example === example).map((image) => overlay(image, found, head));
  const pattern = matrixPicture(head, found, about.tokens);
  const show = (at, way = state.way) => { [strip && strip.shade, overview && overview.show, lines && lines.show, pattern.mark, ...overlays.map((one) => one.show)].forEach((act) => act && act(at, way)); };
  // A token that is locked stays; the pointer and the focus show others only while none is.
  const peek = (at, way = state.way) => { if (state.token !== null) return; const shown = at ?? position, from = at === null ? state.way : way; show(shown, from); saidAbout(said, found, about, shown, jump, from); };
  const jump = (at, focused = null, from = null) => {
    if (from !== null && state.token !== from) change({ token: from });
    if (state.lines && from !== null && isLong(found)) change({ lines: false });
    jumpTo(at, found, focused);
  };
  const overview = state.lines ? null : overviewOf(example, found, about, jump);
  const strip = state.lines ? null : tokenStrip(example, found, about, peek);
  const lines = state.lines ? linesPicture(head, found, about, position, peek) : null;
  if (strip) strip.fill(position);
  if (overview) overview.moved = () => { strip.fill(position); show(position); };
  arrive = (start) => { reading.start = start; if (overview) overview.moved(); };
  hearPattern(pattern, peek, () => peek(null));
  overlays.forEach((one) => one.hear(peek, () => position));
  show(position);
  saidAbout(said, found, about, position, jump);
  return [title, attentionControls(head, example), about.note ? el("p", { class: "about" }, folded(about.note, 200)) : null,
    found.sampled ? el("p", { class: "about", text: sampledWords(found, about) }) : null,
    overlays.length ? el("p", { class: "about", text: "Weights say what a head reads from, not what the model recognises there: switch the head off to know what it does." }) : null,
    overlays.map((one) => one.figure), scaleKey(scaleOf(found), state.own ? "its own scale" : "all heads"), overview ? [said, overview.node, strip.node] : [strip ? strip.node : el("div", { class: "scroll" }, lines.svg), lines && lines.said ? el("p", { class: "about", text: lines.said }) : null, said],
    wholePattern(pattern.svg, unfolded ?? !overlays.length)].flat().filter(Boolean);
}

let arrive = () => {};
// Puts a token on the page, in its place in the text, with the focus on it.
function jumpTo(at, found, focused) {
  const shown = !isLong(found) || (at >= reading.start && at < reading.start + SHOWN_TOKENS);
  if (!shown) arrive(windowAround(at, found.tokens));
  reading.jumped = at;
  const node = $("card").querySelector(`.tokens [data-place="${at}"], .lines [data-place="${at}"][data-way="to"], .picture [data-place="${at}"]`);
  if (!node) return;
  node.classList.add("reached");
  setTimeout(() => node.classList.remove("reached"), 2500);
  if (focused) node.scrollIntoView({ block: "nearest" });
  else node.focus();
}

// Open or folded as the reader left it, whichever head is shown.
let unfolded = null;
const wholePattern = (matrix, open) => el("details", { class: "matrix", open }, el("summary", { text: "The whole pattern", click: (event) => { unfolded = !event.currentTarget.parentNode.open; } }), el("div", { class: "scroll" }, matrix));

const sampledWords = (found, about) => found.partial && found.rows.length === about.tokens.length ? `Of each query row the ${found.wide} keys with the most weight.` : found.across ? `The tokens that look stand first, then what they look at: ${found.rows.length} query rows, ` + (found.partial ? `of each the ${found.wide} keys with the most weight.` : `${found.keys.length} keys.`)
  : `A sample of a longer text: ${found.rows.length.toLocaleString("en")} of ${about.tokens.length.toLocaleString("en")} query rows` + (found.partial ? `, of each the ${found.wide} keys with the most weight.` : `, ${found.keys.length} keys.`) + (state.lines ? "" : " The tokens of these rows are underlined.");

function attentionControls(head, example) {
  const way = el("select", { id: "choose-way", "data-act": "way", change: () => change({ way: way.value }) }, el("option", { value: "from", text: "attends to" }), el("option", { value: "to", text: "is attended from" }));
  way.value = state.way;
  const box = (name, text) => { const id = `choose-${name}`, one = el("input", { type: "checkbox", id, "data-act": name, change: () => change({ [name]: one.checked }) }); one.checked = state[name]; return el("label", { class: "choice", for: id }, one, ` ${text}`); };
  return el("div", { class: "controls" }, exampleMenu("choose-example", examplesOf(head), example), el("label", { class: "choice", for: "choose-way" }, "The token ", way),
    box("lines", "lines"), box("root", "show small weights (square root)"), box("own", "its own scale"));
}
