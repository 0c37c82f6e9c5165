// Tables, checks and provenance; then everything is put on the page.

const MOST_ROWS = 3000;

function plainTable(rows, caption = null) {
  const [head, ...body] = rows;
  const numeric = head.map((_, c) => body.every((row) => missing(row[c]) || typeof row[c] === "number"));
  const lines = el("tbody");
  const fill = (some) => lines.replaceChildren(...some.slice(0, MOST_ROWS).map((row) => el("tr", {}, row.map((value, c) => el("td", { class: numeric[c] ? "right" : null }, typeof value === "string" ? folded(value) : missing(value) ? "" : number(value))))));
  let order = null;
  const sort = (c, node) => {
    order = order && order[0] === c ? [c, -order[1]] : [c, numeric[c] ? -1 : 1];
    const before = (a, b) => (missing(a) ? 1 : missing(b) ? -1 : a < b ? -order[1] : a > b ? order[1] : 0);
    fill([...body].sort((a, b) => before(a[c], b[c])));
    for (const one of node.parentNode.parentNode.children) one.removeAttribute("aria-sort");
    node.parentNode.setAttribute("aria-sort", order[1] > 0 ? "ascending" : "descending");
  };
  fill(body);
  const names = head.map((name, c) => el("th", { scope: "col" }, el("button", { type: "button", class: "sort", click: (event) => sort(c, event.currentTarget), text: shorten(name, 40) })));
  return el("div", { class: "scroll", tabindex: 0, role: "group", "aria-label": caption || "Table" }, el("table", {}, caption ? el("caption", { text: caption }) : null, el("thead", {}, el("tr", {}, names)), lines),
    body.length > MOST_ROWS ? el("p", { class: "about", text: `The first ${MOST_ROWS} of ${body.length} rows; the CSV has all.` }) : null);
}

// A table that is only made when it is opened.
function lazily(title, about, rows, name) {
  const inside = el("div");
  const fold = el("details", { toggle: () => { if (fold.open && !inside.hasChildNodes()) inside.append(about ? el("p", { class: "about" }, folded(about, 400)) : "", exportsOf(name, null, rows), plainTable(rows(), shorten(title, 60))); } },
    el("summary", { text: shorten(title, 100) }), inside);
  return fold;
}

function tablesView() {
  const home = $("tables");
  const some = [];
  if ((COLUMNS.site || []).length) some.push(lazily("All scores", "One row for each head and measure.", () => tableOfScores(() => true), "scores"));
  DATA.tables.forEach((table, n) => some.push(lazily(table.title, table.about, () => [table.columns, ...table.rows], `table-${n + 1}`)));
  const links = DATA.links.map(([name, to]) => el("li", {}, el("a", { href: to }, el("bdi", { text: piece(name, 80) }))));
  if (links.length) some.push(el("h3", { text: "Files beside this page" }), el("ul", {}, links));
  home.append(el("h2", { id: "tables-title", text: "Tables" }), ...some);
  home.hidden = !some.length;
}

const MARK = new Map([[true, "✓ passed"], [false, "✗ failed"], [null, "– not run"]]);
function checksView() {
  if (!DATA.checks.length) return;
  const home = $("checks");
  home.hidden = false;
  home.append(el("h2", { id: "checks-title", text: "Checks" }), el("p", { class: "about", text: "What was held against the model before these numbers were taken." }), el("div", { class: "scroll" }, el("table", {}, el("tbody", {}, DATA.checks.map((check) =>
    el("tr", {}, el("th", { scope: "row" }, folded(check.name || "(empty)")), el("td", { class: check.ok === false ? "failed" : null, text: MARK.get(check.ok) }), el("td", {}, folded(check.detail || "", 200))))))));
}

function flat(value, name = "") {
  if (value === null || typeof value !== "object") return [[name, value === null ? "" : String(value)]];
  return Object.entries(value).flatMap(([key, inner]) => flat(inner, name ? `${name}.${key}` : key));
}
function provenanceView() {
  const rows = flat(DATA.provenance);
  if (!Object.keys(DATA.provenance).length) return;
  const home = $("provenance");
  home.hidden = false;
  home.append(el("h2", { id: "provenance-title", text: "How these numbers came about" }), el("details", {}, el("summary", { text: `${rows.length} facts` }), plainTable([["fact", "value"], ...rows])));
}

// What was found and how sure it is, with a picture; the paragraph of methods comes at the end.
function leadView() {
  if (!DATA.lead) return;
  const { title, says, picture, alt, methods } = DATA.lead, home = $("lead"), end = $("methods");
  home.hidden = false;
  home.append(el("h2", { id: "lead-title", text: title }), el("ul", { class: "sure" }, says.map((text) => el("li", {}, folded(text, 400)))),
    picture ? el("div", { class: "scroll", tabindex: 0, role: "group", "aria-label": "Picture of the finding" }, el("img", { class: "lead", src: picture, alt, load: ({ target }) => { target.width = target.naturalWidth / 2; } })) : "", $("warnings"));
  if (!methods) return;
  end.hidden = false;
  end.append(el("h2", { id: "methods-title", text: "Methods, to be cited" }), el("p", { class: "about", text: "Keys in brackets are those of references.bib; methods.tex has the same with \\citep." }), el("p", { class: "paragraph", text: methods }));
}

// Links to what is on this page; the address is the state's, so they scroll without changing it.
function contents() {
  const home = $("contents"), parts = [...document.querySelectorAll("main section")].filter((one) => !one.hidden && one.querySelector("h2"));
  if (!DATA.lead || parts.length < 3) return;
  const go = (part) => (event) => { event.preventDefault(); part.scrollIntoView(); part.setAttribute("tabindex", "-1"); part.focus({ preventScroll: true }); };
  home.hidden = false;
  home.append(el("ul", { class: "contents" }, parts.map((part) => el("li", {}, el("a", { href: `#${part.id}`, click: go(part), text: part.querySelector("h2").textContent })))));
}

function opening() {
  const list = $("warnings");
  list.hidden = !DATA.warnings.length;
  list.append(...DATA.warnings.map((text) => el("li", { class: "warning" }, folded(text, 400))));
  const top = facts(DATA.facts);
  if (top) list.after(top);
}

if (METHODS.length) state.head = strongest(0)[0] ?? null;
Object.assign(state, understood(pairs(location.hash)));
opening();
leadView();
searchBar();
keysDialog();
mapView();
thumbsView();
rankingView();
scatterView();
cardView();
compareView();
circuitView();
curvesView();
tablesView();
checksView();
provenanceView();
contents();
listen();
keepReachable();
document.documentElement.dataset.ready = "yes";
