// One head: where it looks on real tokens, what it was found to do, and its numbers.

const FIRST_ROWS = 5;
const SHOWS = ["head", "peek", "locked", "pins", "example", "token", "way", "root", "own", "lines", "metric", "picture", "flow"];

function cardView() {
  const home = $("card");
  const render = () => {
    const held = home.contains(document.activeElement) ? { ...document.activeElement.dataset } : null, head = headShown();
    home.replaceChildren(...(head === null ? noHead() : wholeCard(head)));
    const way = held && held.way ? `[data-way="${state.way}"]` : "";
    const again = held && (held.place !== undefined ? home.querySelector(`[data-place="${state.token ?? held.place}"]${way}`) : held.act ? home.querySelector(`[data-act="${held.act}"]`) : null);
    if (again) again.focus({ preventScroll: true });
  };
  views.push((touched) => { if (SHOWS.some((name) => touched.has(name))) render(); });
  render();
}

const noHead = () => [el("h2", { id: "card-title", text: "A head" }), el("p", { text: "Choose a head in the map, in the scatter or by its name to see where it looks and its numbers." })];

function wholeCard(head) {
  const one = HEADS[head], card = DATA.cards[one.site] || {};
  return [cardTop(head, card), ...attentionPart(head), words("Promotes", card.promotes), words("Suppresses", card.suppresses),
    (card.notes || []).map((note) => el("p", { class: "note" }, folded(note, 400))), facts(card.facts), numbers(head),
    one.kv ? el("p", { class: "about", text: `Its keys and values are those of ${one.kv}, which it shares with the other heads of its group.` }) : null].flat().filter(Boolean);
}

// Stays in view while the card is read.
function cardTop(head, card) {
  const pinned = state.pins.includes(head), locked = state.locked && state.head === head;
  return el("div", { class: "card-top" },
    el("div", { class: "name" }, el("h2", { id: "card-title", text: `Head ${HEADS[head].site}` }), roles(card.roles),
      el("button", { type: "button", "data-act": "lock", "aria-pressed": String(locked), title: "A locked head stays while the pointer passes over others", click: () => (locked ? letGo() : hold(head)), text: locked ? "Locked" : "Lock" }),
      el("button", { type: "button", "data-act": "pin", "aria-pressed": String(pinned), title: "Pinned heads are shown side by side", click: () => pin(head), text: pinned ? "Pinned" : "Pin" }),
      exportsOf("attention", () => sheet(`Attention of ${HEADS[head].site}`, [...$("card").querySelectorAll("svg")]), attentionRows, selection)));
}

const facts = (some) => (some && some.length ? el("dl", { class: "facts" }, some.map(([name, value]) => el("div", {}, el("dt", {}, folded(name)), el("dd", {}, folded(value, 200))))) : null);
const roles = (some) => (some && some.length ? el("ul", { class: "roles", "aria-label": "Roles" }, some.map(([name, value]) => el("li", {}, el("bdi", { text: shorten(name, 40) }), missing(value) ? null : ` ${number(value)}`))) : null);
const words = (title, some) => (some && some.length ? el("div", { class: "words" }, el("h3", { text: title }), el("ul", {}, some.map(([text, value]) => el("li", {}, el("bdi", { class: "piece", text: piece(text) }), missing(value) ? null : ` ${number(value, true)}`)))) : null);

// The measure of the map first; more than a few are folded, and stay open from head to head once they are.
let allRows = false;
function numbers(head) {
  const rows = METHODS.map((method, m) => [method, m]).filter(([, m]) => ROWS[m][head] !== null).sort((a, b) => (b[1] === state.metric) - (a[1] === state.metric));
  if (!rows.length) return null;
  const span = (m, signed) => (missing(score(m, head, "low")) ? "" : `${number(score(m, head, "low"), signed)} to ${number(score(m, head, "high"), signed)}`);
  const exact = (m, signed) => (missing(score(m, head, "exact")) ? "" : number(score(m, head, "exact"), signed));
  const check = (m) => ({ true: "agrees", false: "disagrees" })[score(m, head, "verified")] || "";
  const some = (name) => rows.some(([, m]) => !missing(score(m, head, name)));
  const columns = [["measure", true], ["value", true], ["interval", some("low")], ["exact", some("exact")], ["verified", some("verified")], ["noise", some("noise_floor")]].filter(([, on]) => on).map(([name]) => name);
  const part = { measure: ([method]) => shorten(method.name, 44), value: ([method, m]) => number(score(m, head), method.kind === "signed"), interval: ([method, m]) => span(m, method.kind === "signed"),
    exact: ([method, m]) => exact(m, method.kind === "signed"), verified: ([, m]) => check(m), noise: ([, m]) => (missing(score(m, head, "noise_floor")) ? "" : number(score(m, head, "noise_floor"))) };
  const line = (row) => el("tr", {}, columns.map((name, i) => el(i ? "td" : "th", { scope: i ? null : "row", text: part[name](row) })));
  const body = el("tbody"), more = el("button", { type: "button", "data-act": "rows", click: () => { allRows = !allRows; fill(); } });
  const fill = () => {
    body.replaceChildren(...(allRows ? rows : rows.slice(0, FIRST_ROWS)).map(line));
    more.setAttribute("aria-expanded", String(allRows));
    more.textContent = allRows ? `The first ${FIRST_ROWS} measures` : `All ${rows.length} measures`;
  };
  fill();
  return el("div", { class: "measures" }, el("h3", { text: "Measured" }), el("div", { class: "scroll" }, el("table", { class: "numbers" }, el("thead", {}, el("tr", {}, columns.map((name) => el("th", { scope: "col", text: name })))), body)),
    rows.length > FIRST_ROWS ? more : null);
}
