// Heads by any of the names people give them, or by a word of what was found of them.

const WORD = "(?:([a-z_]+)[.\\s])?"; // a tower
// L5H3, 5.3, a5.h3, layer 5 head 3, vision 0.1; then TransformerLens' hooks, with an index of heads or without; then whole layers.
const SPELLED = new RegExp(`^(?!layer|blocks)${WORD}[al]?(\\d+(?:@\\d+)?)\\s*[.,:\\-\\s]?\\s*(?:h|head\\s*)?(\\d+)$|^()layer\\s*(\\d+)\\s*[.,:]?\\s*(?:h|head)\\s*(\\d+)$`, "i");
const HOOK = new RegExp(`^${WORD}blocks\\.(\\d+)(?:\\.(?:attn|attention))?(?:\\.(?:hook_)?([a-z_]+))?(?:\\s*\\[[^\\]\\d]*(\\d+)[^\\]\\d]*\\]|[.\\s]\\s*h?(\\d+))?$`, "i");
const LAYERED = new RegExp(`^${WORD}(?:layer\\s*|l|a|model\\.layers\\.|transformer\\.h\\.|encoder\\.layer\\.)(\\d+(?:@\\d+)?)(?:\\.(?:[a-z_][a-z_.]*)?)?$`, "i");

function spelledHeads(text) {
  const pick = (tower, layer, fits) => HEADS.map((_, i) => i).filter((i) => String(HEADS[i].layer) === layer.replace(/^0+(?=\d)/, "") && (!tower || TOWERS[HEADS[i].tower].name.toLowerCase() === tower.toLowerCase()) && fits(HEADS[i]));
  const one = SPELLED.exec(text);
  if (one) { const [tower, layer, head] = one[2] === undefined ? one.slice(4) : one.slice(1); return pick(tower, layer, (i) => i.head === Number(head)); }
  const hook = HOOK.exec(text);
  if (hook) {
    const [, tower, layer, part, inside, after] = hook, index = inside ?? after;
    if (index === undefined) return pick(tower, layer, () => true);
    return pick(tower, layer, (i) => (["k", "v"].includes((part || "").toLowerCase()) && i.kv ? i.kv.endsWith(`.K${Number(index)}`) : i.head === Number(index)));
  }
  const layered = LAYERED.exec(text);
  if (layered) return pick(layered[1], layered[2], () => true);
  const shared = HEADS.map((_, i) => i).filter((i) => HEADS[i].kv && HEADS[i].kv.toLowerCase() === text);
  return shared.length ? shared : null;
}

// What a query finds: a name, several names, or a word of roles, notes and what heads promote; null for no query.
function heads(query) {
  const text = query.trim().toLowerCase();
  if (!text) return null;
  const named = spelledHeads(text);
  if (named) return named;
  const several = text.split(/[,;\s]+/).filter(Boolean).map(spelledHeads);
  if (several.length > 1 && several.every((one) => one !== null)) return [...new Set(several.flat())];
  const said = (i) => {
    const card = DATA.cards[HEADS[i].site] || {};
    return [HEADS[i].site, HEADS[i].kv || "", ...(card.roles || []).map(([name]) => name), ...(card.notes || []), ...(card.promotes || []).map(([name]) => name)].join("\n").toLowerCase();
  };
  return HEADS.map((_, i) => i).filter((i) => said(i).includes(text));
}

const rolesOf = (head) => ((DATA.cards[HEADS[head].site] || {}).roles || []).map(([name]) => name);

// Names of a head that is here, so that each of them finds something.
function offered() {
  if (!HEADS.length) return "";
  const best = METHODS.length ? strongest(0)[0] : 0, one = HEADS[best ?? 0], tower = TOWERS.length > 1 ? `${TOWERS[one.tower].name}.` : "";
  const role = HEADS.map((_, i) => rolesOf(i)[0]).find((name) => name && name.length < SHORT && !name.includes(","));
  const third = role ?? (tower ? [] : `blocks.${one.layer}.attn.hook_z`); // beside the name of a tower there is no room for it
  return [`${tower}L${one.layer}H${one.head}`, `${one.layer}.${one.head}`].concat(third).join(", ");
}

function searchBar() {
  const list = el("ul", { id: "found", class: "found", "aria-label": "Heads found" }), said = el("output", { "aria-live": "polite" });
  const box = el("input", { type: "search", id: "search", autocomplete: "off", spellcheck: "false", placeholder: offered(), input: () => look(),
    keydown: (event) => { if (event.key === "Enter") { const some = heads(box.value); if (some && some.length) hold(some[0]); } } });
  const look = () => {
    const some = heads(box.value);
    said.textContent = some === null ? "" : `${some.length} ${some.length === 1 ? "head" : "heads"}`;
    list.replaceChildren(...(some || []).slice(0, 12).map((i) => el("li", {}, el("button", { type: "button", click: () => hold(i), text: HEADS[i].site }))));
    change({ found: some === null ? null : new Set(some) });
  };
  const pins = el("span", { class: "pins" });
  const showPins = () => pins.replaceChildren(...(state.pins.length ? ["Pinned ", ...state.pins.map((i) => el("button", { type: "button", click: () => hold(i), text: HEADS[i].site }))] : []));
  views.push((touched) => touched.has("pins") && showPins());
  showPins();
  $("bar").append(el("label", { for: "search", class: "choice" }, "Find a head ", box), said, list, pins);
}
