// One head: its numbers, what it was found to do, and where it looks on real tokens.

const SHOWN_TOKENS = 600;

function cardView() {
  const home = $("card");
  const render = () => {
    const held = home.contains(document.activeElement) ? document.activeElement.dataset : null;
    home.replaceChildren(...(state.head === null ? noHead() : wholeCard(state.head)));
    const again = held && (held.place !== undefined ? home.querySelector(`[data-place="${state.token}"]`) : held.act ? home.querySelector(`[data-act="${held.act}"]`) : null);
    if (again) again.focus();
  };
  views.push((touched) => { if (["head", "pins", "example", "token", "way", "root"].some((name) => touched.has(name))) render(); });
  render();
}

const noHead = () => [el("h2", { id: "card-title", text: "A head" }), el("p", { text: "Choose a head in the map, in the scatter or by its name to see its numbers and where it looks." })];

function wholeCard(head) {
  const one = HEADS[head], card = DATA.cards[one.site] || {};
  const pinned = state.pins.includes(head);
  return [el("h2", { id: "card-title", text: `Head ${one.site}` }),
    el("div", { class: "controls" },
      el("button", { type: "button", "data-act": "pin", "aria-pressed": String(pinned), click: () => pin(head), text: pinned ? "Pinned" : "Pin" }),
      el("button", { type: "button", "data-act": "json", click: saveSelection, text: "Save selection as JSON" })),
    one.kv ? el("p", { text: `Its keys and values are those of ${one.kv}, which it shares with the other heads of its group.` }) : null,
    facts(card.facts), roles(card.roles), numbers(head), words("Promotes", card.promotes), words("Suppresses", card.suppresses),
    (card.notes || []).map((note) => el("p", { class: "note" }, folded(note, 400))), ...attentionPart(head)].flat().filter(Boolean);
}

const facts = (some) => (some && some.length ? el("dl", { class: "facts" }, some.map(([name, value]) => el("div", {}, el("dt", {}, folded(name)), el("dd", {}, folded(value, 200))))) : null);
const roles = (some) => (some && some.length ? el("ul", { class: "roles", "aria-label": "Roles" }, some.map(([name, value]) => el("li", {}, el("bdi", { text: shorten(name, 40) }), missing(value) ? null : ` ${number(value)}`))) : null);
const words = (title, some) => (some && some.length ? el("div", { class: "words" }, el("h3", { text: title }), el("ul", {}, some.map(([text, value]) => el("li", {}, el("bdi", { class: "piece", text: piece(text) }), missing(value) ? null : ` ${number(value, true)}`)))) : null);

function numbers(head) {
  const rows = METHODS.map((method, m) => [method, m]).filter(([, m]) => ROWS[m][head] !== null);
  if (!rows.length) return null;
  const span = (m, signed) => (missing(score(m, head, "low")) ? "" : `${number(score(m, head, "low"), signed)} to ${number(score(m, head, "high"), signed)}`);
  const exact = (m, signed) => (missing(score(m, head, "exact")) ? "" : number(score(m, head, "exact"), signed));
  const check = (m) => ({ true: "agrees", false: "disagrees" })[score(m, head, "verified")] || "";
  const some = (name) => rows.some(([, m]) => !missing(score(m, head, name)));
  const columns = [["measure", true], ["value", true], ["interval", some("low")], ["exact", some("exact")], ["verified", some("verified")], ["noise", some("noise_floor")]].filter(([, on]) => on).map(([name]) => name);
  const part = { measure: ([method]) => shorten(method.name, 44), value: ([method, m]) => number(score(m, head), method.kind === "signed"), interval: ([method, m]) => span(m, method.kind === "signed"),
    exact: ([method, m]) => exact(m, method.kind === "signed"), verified: ([, m]) => check(m), noise: ([, m]) => (missing(score(m, head, "noise_floor")) ? "" : number(score(m, head, "noise_floor"))) };
  return el("div", { class: "scroll" }, el("table", { class: "numbers" }, el("caption", { text: "Measured" }), el("thead", {}, el("tr", {}, columns.map((name) => el("th", { scope: "col", text: name })))),
    el("tbody", {}, rows.map((row) => el("tr", {}, columns.map((name, i) => el(i ? "td" : "th", { scope: i ? null : "row", text: part[name](row) })))))));
}

function attentionPart(head) {
  const example = exampleShown(head);
  if (example === null) return [el("p", { class: "about", text: "No attention pattern of this head is stored in this page." })];
  const found = attentionOf(head, example), about = DATA.examples[example];
  const position = tokenShown(found);
  const said = el("div", { class: "said", "aria-live": "polite" });
  const strip = el("div", { class: "tokens", role: "group", "aria-label": "Tokens; Enter locks one, Escape lets go" });
  const [matrix, under] = matrixPicture(found, about.tokens, position);
  const overlays = DATA.images.filter((image) => image.example === example).map((image) => overlay(image, found));
  const show = (at) => { shadeTokens(strip, found, at); overlays.forEach((one) => one.show(at)); saidAbout(said, found, about, at); };
  fillTokens(strip, found, about, show, () => position);
  matrix.addEventListener("mousemove", (event) => { const cellAt = under(event); if (cellAt) show(state.way === "from" ? found.rows[cellAt[0]] : found.keys[cellAt[1]]); });
  matrix.addEventListener("mouseleave", () => show(position));
  matrix.addEventListener("click", (event) => { const cellAt = under(event); if (cellAt) change({ token: state.way === "from" ? found.rows[cellAt[0]] : found.keys[cellAt[1]] }); });
  overlays.forEach((one) => one.hear(show, () => position));
  show(position);
  return [el("h3", { text: "Where it looks" }), attentionControls(head, example, overlays.length > 0 || !found.partial), about.note ? el("p", { class: "about" }, folded(about.note, 200)) : null,
    found.sampled ? el("p", { class: "about", text: sampledWords(found, about) }) : null,
    overlays.length ? el("p", { class: "about", text: "Weights say what a head reads from, not what the model recognises there: switch the head off to know what it does." }) : null,
    overlays.map((one) => one.figure), strip, said,
    found.partial ? null : wholePattern(matrix, unfolded ?? !overlays.length)].filter(Boolean);
}

// Open or folded as the reader left it, whichever head is shown.
let unfolded = null;
const wholePattern = (matrix, open) => el("details", { class: "matrix", open }, el("summary", { text: "The whole pattern", click: (event) => { unfolded = !event.currentTarget.parentNode.open; } }), el("div", { class: "scroll" }, matrix));

const sampledWords = (found, about) => found.across ? `The tokens that look stand first, then what they look at: ${found.rows.length} query rows, ` + (found.partial ? `of each the ${found.wide} keys with the most weight.` : `${found.keys.length} keys.`)
  : `A sample of a longer text: ${found.rows.length} of ${about.tokens.length.toLocaleString("en")} query rows` + (found.partial ? `, of each the ${found.wide} keys with the most weight.` : `, ${found.keys.length} keys.`);

function attentionControls(head, example, drawn) {
  const menu = el("select", { id: "choose-example", "data-act": "example", change: () => change({ example: Number(menu.value), token: null }) }, examplesOf(head).map((i) => el("option", { value: i, text: shorten(DATA.examples[i].name, 50) })));
  menu.value = String(example);
  const way = el("select", { id: "choose-way", "data-act": "way", change: () => change({ way: way.value }) }, el("option", { value: "from", text: "attends to" }), el("option", { value: "to", text: "is attended from" }));
  way.value = state.way;
  const root = el("input", { type: "checkbox", id: "choose-root", "data-act": "root", change: () => change({ root: root.checked }) });
  root.checked = state.root;
  return el("div", { class: "controls" }, el("label", { class: "choice", for: "choose-example" }, "Example ", menu), el("label", { class: "choice", for: "choose-way" }, "The token ", way),
    el("label", { class: "choice", for: "choose-root" }, root, " show small weights (square root)"), exportsOf("attention", drawn && (() => sheet(`Attention of ${HEADS[head].site}`, [...$("card").querySelectorAll("svg")])), attentionRows));
}

function fillTokens(strip, found, about, show, rest) {
  const places = found.places.length > SHOWN_TOKENS ? found.places.slice(-SHOWN_TOKENS) : found.places;
  const gap = (count) => el("span", { class: "gap", text: `… ${count.toLocaleString("en")} not shown …` });
  const nodes = [];
  let before = -1;
  const cells = places.map((at, i) => {
    if (at > before + 1) nodes.push(gap(at - before - 1));
    before = at;
    const node = el("button", { type: "button", class: "token", "data-place": at, "aria-pressed": String(state.token === at), title: `${at}${about.roles ? ` ${shorten(about.roles[at], 40)}` : ""}`,
      mouseenter: () => show(at), focus: () => show(at), mouseleave: () => show(rest()), click: () => change({ token: state.token === at ? null : at }) }, el("bdi", { text: piece(about.tokens[at]) }));
    nodes.push(node);
    return { node, row: 0, column: i, at };
  });
  if (before < about.tokens.length - 1) nodes.push(gap(about.tokens.length - 1 - before));
  strip.append(...nodes);
  const stop = roving(strip, cells, () => {});
  const now = cells.find((cell) => cell.at === rest());
  if (now) stop(now);
  strip.addEventListener("keydown", (event) => { if (event.key === "Escape") change({ token: null }); });
}

function shadeTokens(strip, found, position) {
  const weights = weightsAt(found, position);
  for (const node of strip.querySelectorAll(".token")) {
    const at = Number(node.dataset.place), weight = weights === null ? null : weights.get(at) ?? 0;
    const fill = weight === null ? "#ffffff" : shade(weight, found.scale, state.root);
    node.style.backgroundColor = fill;
    node.style.color = inkOn(fill);
    node.classList.toggle("here", at === position);
    node.setAttribute("aria-label", `${at} ${node.textContent}` + (weight ? ` ${number(weight)}` : "") + (at === position ? ", shown" : ""));
  }
}

function saidAbout(said, found, about, position) {
  const weights = weightsAt(found, position);
  const token = el("p", {}, el("b", { text: `${position} ` }), about.tokens[position] === "" ? "(empty)" : folded(about.tokens[position]), about.roles ? ` (${shorten(about.roles[position], 40)})` : "", state.token === position ? ", locked" : "");
  if (weights === null) { said.replaceChildren(token, el("p", { text: "This row is not in the sample." })); return; }
  const top = [...weights].filter(([, w]) => w > 0).sort((a, b) => b[1] - a[1]).slice(0, 5);
  said.replaceChildren(token, el("p", { text: state.way === "from" ? "attends most to" : "is attended to most from" }),
    el("ol", { class: "top" }, top.map(([at, weight]) => el("li", {}, el("bdi", { class: "piece", text: piece(about.tokens[at]) }), ` at ${at}: ${number(weight)}`))));
}
