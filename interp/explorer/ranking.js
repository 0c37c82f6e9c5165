// The heads with the largest values of the chosen measure, each with its interval and the band of noise.

const RANKED = 16;

function rankingView() {
  const home = $("ranking");
  if (!METHODS.length) { home.hidden = true; return; }
  const box = el("div", { class: "scroll" });
  home.append(el("h2", { id: "ranking-title", text: "Largest values" }), el("div", { class: "controls" }, exportsOf("ranking", () => sheet(METHODS[state.metric].name, [box.querySelector("svg")]), rankingRows)), box);
  const render = () => {
    const held = box.contains(document.activeElement);
    const [svg, stop, bars] = rankingPicture();
    box.replaceChildren(svg);
    const now = bars.find((one) => one.head === state.head);
    if (now) { stop(now); if (held) now.node.focus(); }
  };
  views.push((touched) => { if (["metric", "head", "pins"].some((name) => touched.has(name))) render(); });
  render();
}

const strongest = (m) => HEADS.map((_, i) => i).filter((i) => !missing(score(m, i))).sort((a, b) => Math.abs(score(m, b)) - Math.abs(score(m, a)));

function rankingPicture() {
  const m = state.metric, method = METHODS[m], signed = method.kind === "signed", heads = strongest(m).slice(0, RANKED);
  const left = 86, width = 300, line = 19, height = heads.length * line + 40;
  const ends = heads.flatMap((i) => [score(m, i), score(m, i, "low"), score(m, i, "high")]).filter((v) => !missing(v));
  const x = axis(ends, left, left + width);
  const svg = draw("svg", { width: 450, height, viewBox: `0 0 450 ${height}`, "font-size": 11, "font-family": FONT, role: "listbox", "aria-label": `Heads with the largest values of ${readable(method.name)}; arrow keys move` });
  const bottom = heads.length * line + 8;
  svg.append(draw("g", { "aria-hidden": "true" }, x.ticks.map((v) => [draw("path", { d: `M${x(v)} 4V${bottom}`, stroke: v === 0 ? "#777777" : "#e4e4e4" }), draw("text", { x: x(v), y: bottom + 13, "text-anchor": "middle", text: number(v) })]),
    draw("text", { x: left + width / 2, y: bottom + 27, "text-anchor": "middle", text: shorten(method.unit || method.name, 60) })));
  const bars = heads.map((head, row) => ({ head, row, column: 0, node: bar(m, head, row * line + 6, x, signed) }));
  svg.append(...bars.map((one) => one.node));
  return [svg, roving(svg, bars, (one) => select(one.head)), bars];
}

function bar(m, head, y, x, signed) {
  const value = score(m, head), low = score(m, head, "low"), high = score(m, head, "high"), chosen = state.head === head;
  const from = Math.min(x(0), x(value)), size = Math.abs(x(value) - x(0)), right = Math.max(x(value), missing(high) ? x(value) : x(high), x(0));
  const floor = score(m, head, "noise_floor") ?? METHODS[m].floor;
  return draw("g", { role: "option", class: "point", "data-head": HEADS[head].site, "aria-selected": String(chosen), "aria-label": inWords(m, head), click: (event) => (event.shiftKey ? pin(head) : select(head)) },
    draw("rect", { x: 0, y: y - 2, width: 450, height: 18, fill: chosen ? "#fff0dc" : "#ffffff", "fill-opacity": chosen ? 1 : 0 }),
    draw("text", { x: 80, y: y + 11, "text-anchor": "end", "font-weight": chosen || state.pins.includes(head) ? "bold" : "normal", text: HEADS[head].site }),
    draw("rect", { x: from, y, width: Math.max(size, 0.5), height: 13, fill: signed ? (value < 0 ? "#7fb2d9" : "#f8ab59") : "#948e77", stroke: "#444444", "stroke-width": 0.7, "stroke-dasharray": signed && !beyond(m, head) ? "2 2" : null }),
    missing(low) || missing(high) ? null : draw("path", { d: `M${x(low)} ${y + 6.5}H${x(high)}M${x(low)} ${y + 3}V${y + 10}M${x(high)} ${y + 3}V${y + 10}`, stroke: "#000000", "stroke-width": 1.2, fill: "none" }),
    missing(floor) || !signed ? null : draw("path", { d: `M${x(-floor)} ${y - 2}V${y + 15}M${x(floor)} ${y - 2}V${y + 15}`, stroke: "#777777", "stroke-width": 0.8, "stroke-dasharray": "1 2" }),
    draw("text", { x: right + 6, y: y + 11, text: number(value, signed) }));
}

const rankingRows = () => [["rank", "site", "estimate", "low", "high"], ...strongest(state.metric).map((i, n) => [n + 1, HEADS[i].site, score(state.metric, i), score(state.metric, i, "low"), score(state.metric, i, "high")])];
