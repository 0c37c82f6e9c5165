// Pinned heads side by side, on one scale, all of the same token.

const SIDE_BY_SIDE = 4;

function compareView() {
  const home = $("compare"), title = el("h2", { id: "compare-title", text: "Pinned heads side by side" }), about = el("p", { class: "about", "aria-live": "polite" }), panels = el("div", { class: "panels" }), key = el("div");
  const menus = el("div", { class: "controls" });
  home.append(title, menus, about, key, panels);
  menus.append(el("button", { type: "button", click: () => { change({ pins: [] }); $("search").focus(); }, text: "Unpin all" }),
    exportsOf("pinned", () => sheet("Pinned heads", [...home.querySelectorAll("svg")]), () => comparedRows()));
  const render = () => {
    const some = state.pins.slice(-SIDE_BY_SIDE), held = panels.contains(document.activeElement) ? { ...document.activeElement.dataset } : null;
    home.hidden = !some.length;
    about.textContent = `${state.pins.length > SIDE_BY_SIDE ? `The last ${SIDE_BY_SIDE} of ${state.pins.length} pinned heads. ` : ""}One scale for all of them, 0 to ${number(commonScale(some))}; the framed ${state.way === "from" ? "row is the token that looks" : "column is the token that is looked at"}. The pointer and a click work on all of them together.`;
    key.replaceChildren(some.length ? scaleKey(commonScale(some), "all of them") : "");
    const made = some.map((head) => panel(head, commonScale(some)));
    const peek = (at) => { if (state.token === null) made.forEach((one) => one.show && one.show(at)); };
    made.forEach((one) => { if (one.pattern) hearPattern(one.pattern, peek, () => peek(null)); });
    panels.replaceChildren(...made.map((one) => one.node));
    const again = held && held.unpin ? panels.querySelector(`[data-unpin="${held.unpin}"]`) ?? panels.querySelector("[data-unpin]") ?? $("search") : null;
    if (again) again.focus();
  };
  views.push((touched) => { if (["pins", "example", "token", "way", "root", "metric"].some((name) => touched.has(name))) render(); });
  render();
}

const looksOf = (head) => { const example = exampleShown(head); return example === null ? null : attentionOf(head, example); };
const commonScale = (some) => Math.max(0, ...some.map(looksOf).filter(Boolean).map((found) => found.top)) || 1;

function panel(head, scale) {
  const found = looksOf(head), site = HEADS[head].site, card = DATA.cards[site] || {};
  const top = el("div", { class: "name" }, el("h3", {}, el("button", { type: "button", class: "as-link", click: () => hold(head), text: site })), el("button", { type: "button", "data-unpin": site, "aria-label": `Unpin ${site}`, click: () => pin(head), text: "×" }));
  const measured = METHODS.length && !missing(score(state.metric, head)) ? el("p", { class: "about", text: inWords(state.metric, head).slice(site.length + 2) }) : null;
  if (!found) return { node: el("article", { class: "panel", "aria-label": site }, top, roles(card.roles), measured, el("p", { class: "about", text: "No attention pattern of this head is stored in this page." })) };
  const tokens = DATA.examples[exampleShown(head)].tokens, pattern = matrixPicture(head, found, tokens, { scale, room: 250, labels: false }), list = el("ol", { class: "top" }), token = el("p");
  const show = (at) => {
    const position = at ?? tokenShown(found), weights = weightsAt(found, position);
    pattern.mark(position);
    token.replaceChildren(el("b", { text: `${position} ` }), el("bdi", { class: "piece", text: piece(tokens[position] ?? "") }), weights === null ? ", not in the sample" : state.way === "from" ? " looks at" : " is looked at from");
    list.replaceChildren(...[...(weights || [])].filter(([, w]) => w > 0).sort((a, b) => b[1] - a[1]).slice(0, 3).map(([place, weight]) => el("li", {}, el("bdi", { class: "piece", text: piece(tokens[place]) }), ` at ${place}: ${number(weight)}`)));
  };
  show(null);
  return { pattern, show, node: el("article", { class: "panel", "aria-label": site }, top, roles(card.roles), measured, el("div", { class: "scroll" }, pattern.svg), token, list) };
}

function comparedRows() {
  const rows = state.pins.slice(-SIDE_BY_SIDE).flatMap((head) => {
    const found = looksOf(head);
    if (!found) return [];
    const position = tokenShown(found), tokens = DATA.examples[exampleShown(head)].tokens;
    return [...(weightsAt(found, position) || [])].filter(([, w]) => w > 0).map(([at, weight]) => [HEADS[head].site, state.way, position, at, tokens[at], Number(weight.toPrecision(4))]);
  });
  return [["head", "way", "token", "position", "text", "weight"], ...rows];
}

// In the bar, once heads are pinned: the way to where they are compared.
function goCompare() {
  const button = el("button", { type: "button", id: "go-compare", click: () => { const home = $("compare"); home.scrollIntoView(); home.setAttribute("tabindex", "-1"); home.focus({ preventScroll: true }); }, text: "Compare" });
  const show = () => { button.hidden = !state.pins.length; };
  views.push((touched) => touched.has("pins") && show());
  show();
  return button;
}
