// The heads with the largest values of the chosen measure, each with its interval and the band of noise.

const RANKED = 16;

function rankingView() {
  const home = $("ranking");
  if (!METHODS.length) { home.hidden = true; return; }
  const box = el("div", { class: "scroll" });
  home.append(el("h2", { id: "ranking-title", text: "Largest values" }), el("div", { class: "controls" }, exportsOf("ranking", () => sheet(METHODS[state.metric].name, [box.querySelector("svg")]), rankingRows)), box);
  const render = () => {
    const held = box.contains(document.activeElement);
    const [svg, stop, bars] = rankingPicture(clamp(roomOf(box), LEAST, 1100));
    box.replaceChildren(svg);
    const now = bars.find((one) => one.head === state.head);
    if (now) { stop(now); if (held) now.node.focus(); }
  };
  views.push((touched) => { if (["metric", "head", "pins"].some((name) => touched.has(name))) render(); });
  render();
  fitted(box, render);
}

const strongest = (m) => HEADS.map((_, i) => i).filter((i) => !missing(score(m, i))).sort((a, b) => Math.abs(score(m, b)) - Math.abs(score(m, a)));

function rankingPicture(whole) {
  const m = state.metric, method = METHODS[m], signed = method.kind === "signed", heads = strongest(m).slice(0, RANKED);
  const left = 12 + 6.6 * Math.max(8, ...heads.map((i) => HEADS[i].site.length)), width = whole - left - 66, line = 19, bottom = heads.length * line + 8;
  const ends = heads.flatMap((i) => [score(m, i), score(m, i, "low"), score(m, i, "high")]).filter((v) => !missing(v));
  const x = axis(ends, left, left + width), key = rankingKey(m, heads, 8, bottom + 48, whole), height = bottom + 36 + key.tall;
  const svg = draw("svg", { width: whole, height, viewBox: `0 0 ${whole} ${height}`, "font-size": 11, "font-family": FONT, role: "listbox", "aria-label": `Heads with the largest values of ${readable(method.name)}; arrow keys move` });
  svg.append(draw("g", { "aria-hidden": "true" }, x.ticks.map((v) => [draw("path", { d: `M${x(v)} 4V${bottom}`, stroke: v === 0 ? "#777777" : "#e4e4e4" }), draw("text", { x: x(v), y: bottom + 13, "text-anchor": "middle", text: number(v) })]),
    draw("text", { x: left + width / 2, y: bottom + 27, "text-anchor": "middle", text: shorten(method.unit || method.name, Math.floor(width / 6)) }), key.node));
  const bars = heads.map((head, row) => ({ head, row, column: 0, node: bar(m, head, row * line + 6, x, signed, left, whole) }));
  svg.append(...bars.map((one) => one.node));
  return [svg, roving(svg, bars, (one) => select(one.head)), bars];
}

// What the colours and lines of the bars mean, those that are there.
function rankingKey(m, heads, left, top, room) {
  const signed = METHODS[m].kind === "signed", has = (name) => heads.some((i) => !missing(score(m, i, name)));
  const swatch = (fill) => (x, y) => draw("rect", { x, y: y - 8, width: 14, height: 9, fill, stroke: "#444444", "stroke-width": 0.7 });
  const items = signed ? [["above 0", swatch(ORANGE[3])], ["below 0", swatch(BLUE[3])]] : [["size", swatch(CIVIDIS[3])]];
  if (has("low")) items.push(["interval", (x, y) => draw("path", { d: `M${x} ${y - 4}h14M${x} ${y - 7}v6M${x + 14} ${y - 7}v6`, stroke: "#000000", "stroke-width": 1.2, fill: "none" })]);
  if (signed && (has("noise_floor") || METHODS[m].floor)) items.push(["noise", (x, y) => draw("path", { d: `M${x + 3} ${y - 9}v11M${x + 11} ${y - 9}v11`, stroke: "#777777", "stroke-width": 0.8, "stroke-dasharray": "1 2" })]);
  return keyRow(items, left, top, room, 19);
}

function bar(m, head, y, x, signed, left, whole) {
  const value = score(m, head), low = score(m, head, "low"), high = score(m, head, "high"), chosen = state.head === head;
  const from = Math.min(x(0), x(value)), size = Math.abs(x(value) - x(0)), right = Math.max(x(value), missing(high) ? x(value) : x(high), x(0));
  const floor = score(m, head, "noise_floor") ?? METHODS[m].floor;
  const node = draw("g", { role: "option", class: "point", "data-head": HEADS[head].site, "aria-selected": String(chosen), "aria-label": inWords(m, head), click: (event) => (event.shiftKey ? pin(head) : select(head)) },
    draw("rect", { x: 0, y: y - 2, width: whole, height: 18, fill: chosen ? "#fff0dc" : "#ffffff", "fill-opacity": chosen ? 1 : 0 }),
    draw("text", { x: left - 6, y: y + 11, "text-anchor": "end", "font-weight": chosen || state.pins.includes(head) ? "bold" : "normal", text: HEADS[head].site }),
    draw("rect", { x: from, y, width: Math.max(size, 0.5), height: 13, fill: signed ? (value < 0 ? BLUE[3] : ORANGE[3]) : CIVIDIS[3], stroke: "#444444", "stroke-width": 0.7, "stroke-dasharray": signed && !sure(m, head) ? "2 2" : null, "fill-opacity": signed && !sure(m, head) ? 0.45 : 1 }),
    missing(low) || missing(high) ? null : draw("path", { d: `M${x(low)} ${y + 6.5}H${x(high)}M${x(low)} ${y + 3}V${y + 10}M${x(high)} ${y + 3}V${y + 10}`, stroke: "#000000", "stroke-width": 1.2, fill: "none" }),
    missing(floor) || !signed ? null : draw("path", { d: `M${x(-floor)} ${y - 2}V${y + 15}M${x(floor)} ${y - 2}V${y + 15}`, stroke: "#777777", "stroke-width": 0.8, "stroke-dasharray": "1 2" }),
    draw("text", { x: right + 6, y: y + 11, text: number(value, signed) }));
  return tipped(node, () => headTip(head, m));
}

const rankingRows = () => [["rank", "site", "estimate", "low", "high"], ...strongest(state.metric).map((i, n) => [n + 1, HEADS[i].site, score(state.metric, i), score(state.metric, i, "low"), score(state.metric, i, "high")])];
