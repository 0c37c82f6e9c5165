// What is on the screen as a file: pictures as SVG and PNG, numbers as CSV, the selection as JSON.

function save(name, type, content) {
  const url = URL.createObjectURL(content instanceof Blob ? content : new Blob([content], { type }));
  const link = el("a", { href: url, download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}

// Pictures one under the other, with a title and what is selected, as one SVG that stands by itself.
function sheet(title, pictures) {
  const shown = pictures.filter(Boolean).map((one) => {
    const copy = one.cloneNode(true);
    for (const node of [copy, ...copy.querySelectorAll("*")]) for (const name of ["tabindex", "role", "aria-describedby", "class"]) node.removeAttribute(name);
    return [copy, Number(one.getAttribute("width")), Number(one.getAttribute("height"))];
  });
  const width = Math.max(340, ...shown.map(([, w]) => w)) + 16;
  let y = 52;
  const placed = shown.map(([copy, , height]) => { copy.setAttribute("x", 8); copy.setAttribute("y", y); y += height + 8; return copy; });
  const chosen = [state.head === null ? null : `selected ${HEADS[state.head].site}`, state.pins.length ? `pinned ${state.pins.map((i) => HEADS[i].site).join(", ")}` : null].filter(Boolean).join("; ");
  return draw("svg", { xmlns: SVG, width, height: y, viewBox: `0 0 ${width} ${y}`, "font-family": FONT, "font-size": 12 },
    draw("title", { text: readable(title) }), draw("rect", { width, height: y, fill: "#ffffff" }),
    draw("text", { x: 8, y: 18, "font-size": 14, "font-weight": "bold", text: shorten(title, 70) }),
    draw("text", { x: 8, y: 34, fill: "#444444", text: shorten(DATA.title, 90) }), draw("text", { x: 8, y: 48, fill: "#444444", text: shorten(chosen, 90) }), placed);
}

const asText = (picture) => '<?xml version="1.0" encoding="UTF-8"?>\n' + new XMLSerializer().serializeToString(picture) + "\n";

function savePng(name, picture) {
  const image = new Image(), width = Number(picture.getAttribute("width")), height = Number(picture.getAttribute("height"));
  image.onload = () => {
    const canvas = el("canvas", { width: 2 * width, height: 2 * height });
    canvas.getContext("2d").drawImage(image, 0, 0, 2 * width, 2 * height);
    canvas.toBlob((blob) => save(name, "image/png", blob), "image/png");
  };
  image.src = "data:image/svg+xml;charset=utf-8," + encodeURIComponent(new XMLSerializer().serializeToString(picture));
}

// A cell that a spreadsheet would take for a formula is kept a text.
function cell(value) {
  if (missing(value)) return "";
  if (typeof value === "number" || typeof value === "boolean") return String(value);
  const text = /^[=+\-@\t\r]/.test(value) && Number.isNaN(Number(value)) ? `'${value}` : String(value);
  return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}
const csv = (rows) => rows.map((row) => row.map(cell).join(",")).join("\r\n") + "\r\n";

const tableOfScores = (keep) => [DATA.scores.map((one) => one.name), ...(COLUMNS.site || []).map((_, row) => row).filter(keep).map((row) => DATA.scores.map((one) => COLUMNS[one.name][row]))];

// All that is known about what is selected, with the state of the page.
function selection() {
  const about = (i) => ({ ...HEADS[i], tower: TOWERS[HEADS[i].tower].name, kv: HEADS[i].kv,
    scores: METHODS.map((_, m) => ROWS[m][i]).filter((row) => row !== null).map((row) => Object.fromEntries(DATA.scores.map((one) => [one.name, COLUMNS[one.name][row]]))),
    card: DATA.cards[HEADS[i].site] || null });
  return { title: DATA.title, link: fragment(), metric: METHODS[state.metric] || null, head: state.head === null ? null : about(state.head), pinned: state.pins.map(about),
    attention: lockedAttention(), circuit: circuitShown(), provenance: DATA.provenance };
}
