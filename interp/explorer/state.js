// The data of the page, what is looked at now, and who is told when that changes.

const FONT = "system-ui, sans-serif";
const DATA = JSON.parse($("data").textContent);
const HEADS = DATA.heads, METHODS = DATA.methods, TOWERS = DATA.towers;
const BY_SITE = new Map(HEADS.map((head, i) => [head.site, i]));

const column = (name) => {
  const found = DATA.scores.find((one) => one.name === name);
  if (!found) return null;
  return found.codes ? found.codes.map((code) => (code < 0 ? null : found.levels[code])) : found.values;
};

// By method, one entry a head: the number of the row in the table of scores.
const ROWS = METHODS.map(() => new Array(HEADS.length).fill(null));
const COLUMNS = Object.fromEntries(DATA.scores.map((one) => [one.name, column(one.name)]));
(COLUMNS.site || []).forEach((site, row) => {
  const method = METHODS.findIndex((one) => one.name === COLUMNS.method[row]);
  if (BY_SITE.has(site) && method >= 0) ROWS[method][BY_SITE.get(site)] = row;
});

const score = (method, head, name = "estimate") => {
  const row = ROWS[method] ? ROWS[method][head] : null;
  return row === null || !COLUMNS[name] ? null : COLUMNS[name][row];
};

// Beyond the noise floor; and whether the interval leaves 0 out, where there is one.
function beyond(method, head) {
  const value = score(method, head), floor = score(method, head, "noise_floor") ?? METHODS[method].floor ?? 0;
  return !missing(value) && Math.abs(value) > floor;
}
function clear(method, head) {
  const low = score(method, head, "low"), high = score(method, head, "high");
  return beyond(method, head) && !missing(low) && !missing(high) && (low > 0 || high < 0);
}

function inWords(method, head) {
  const one = METHODS[method], signed = one.kind === "signed";
  const low = score(method, head, "low"), high = score(method, head, "high");
  const parts = [`${HEADS[head].site}, ${readable(one.name)} ${number(score(method, head), signed)}`];
  if (!missing(low) && !missing(high)) parts.push(`interval ${number(low, signed)} to ${number(high, signed)}`);
  if (signed && !missing(score(method, head)) && !beyond(method, head)) parts.push("within the noise");
  const checked = score(method, head, "verified");
  if (checked === true) parts.push("verified by exact patching");
  if (checked === false) parts.push("exact patching disagrees");
  return parts.join(", ");
}

// `head` is chosen, and `locked` once somebody chose it; `peek` is the head under the pointer while none is locked.
const state = { head: null, locked: false, peek: null, metric: 0, x: 0, y: Math.min(1, METHODS.length - 1), pins: [], example: 0, token: null, way: "from", root: false, own: false, lines: false, layer: null, role: null,
  edges: 60, found: null };
const views = [];

function change(next) {
  const before = { ...state };
  Object.assign(state, next);
  const touched = new Set(Object.keys(next).filter((key) => before[key] !== state[key]));
  if (!touched.size) return;
  for (const view of views) view(touched);
  remember();
  tell();
}

// The same state as a fragment of the address, so that a view can be linked and bookmarked.
function fragment() {
  const name = (i) => (METHODS[i] ? METHODS[i].name : null);
  const kept = { head: state.head === null ? null : HEADS[state.head].site, metric: name(state.metric), x: name(state.x), y: name(state.y),
    pins: state.pins.map((i) => HEADS[i].site).join("+") || null, example: state.example || null, token: state.token,
    way: state.way === "to" ? "to" : null, root: state.root ? 1 : null, own: state.own ? 1 : null, lines: state.lines ? 1 : null, lock: state.locked ? 1 : null, layer: state.layer, role: state.role, edges: state.edges === 60 ? null : state.edges };
  return "#" + Object.entries(kept).filter(([, v]) => v !== null && v !== undefined).map(([k, v]) => `${k}=${encodeURIComponent(v)}`).join("&");
}

function remember() {
  const wanted = fragment();
  if (location.hash === wanted) return;
  if (location.protocol === "about:") return; // a page inside a notebook has no address of its own
  history.replaceState(null, "", wanted);
}

function pairs(text) {
  const found = {};
  for (const part of text.replace(/^#/, "").split("&")) {
    const [key, ...rest] = part.split("=");
    try { found[key] = decodeURIComponent(rest.join("=")); } catch (broken) { if (!(broken instanceof URIError)) throw broken; }
  }
  return found;
}

// What a fragment or the notebook says, as far as it names things that are here.
function understood(given) {
  const next = {};
  const method = (name) => METHODS.findIndex((one) => one.name === name);
  const whole = (text) => (/^\d{1,7}$/.test(String(text)) ? Number(text) : null);
  if (BY_SITE.has(given.head)) next.head = BY_SITE.get(given.head);
  for (const key of ["metric", "x", "y"]) if (method(given[key]) >= 0) next[key] = method(given[key]);
  if (given.pins) next.pins = (Array.isArray(given.pins) ? given.pins : String(given.pins).split("+")).filter((s) => BY_SITE.has(s)).map((s) => BY_SITE.get(s));
  if (whole(given.example) !== null && whole(given.example) < DATA.examples.length) next.example = whole(given.example);
  if (whole(given.token) !== null) next.token = whole(given.token);
  if (given.way) next.way = given.way === "to" ? "to" : "from";
  for (const [key, name] of [["root", "root"], ["own", "own"], ["lines", "lines"], ["lock", "locked"]]) if (given[key]) next[name] = given[key] === "1";
  if (given.layer && (TOWERS.some((one) => one.name === given.layer) || HEADS.some((one) => one.site.startsWith(`${given.layer}.H`)))) next.layer = given.layer;
  if (given.role) next.role = given.role;
  if (whole(given.edges)) next.edges = whole(given.edges);
  return next;
}

// A notebook that holds this page in a frame hears what is selected, and may select.
let told = null;
function tell() {
  if (window.parent === window || told === fragment()) return;
  told = fragment();
  window.parent.postMessage({ interp: "selected", head: state.head === null ? null : HEADS[state.head].site, pins: state.pins.map((i) => HEADS[i].site),
    metric: METHODS[state.metric] ? METHODS[state.metric].name : null, token: state.token, example: state.example }, "*");
}
function listen() {
  window.addEventListener("hashchange", () => change(understood(pairs(location.hash))));
  window.addEventListener("message", (event) => {
    if (event.source !== window.parent || window.parent === window || !event.data || event.data.interp !== "select") return;
    change(understood(event.data));
  });
}

// Chosen by hand: it stays, whatever the pointer passes over, until it is let go.
const hold = (head) => change({ head, locked: true, peek: null });
const select = hold;
const letGo = () => change({ locked: false });
const headShown = () => state.peek ?? state.head;
const pin = (head) => change({ pins: state.pins.includes(head) ? state.pins.filter((one) => one !== head) : [...state.pins, head] });
