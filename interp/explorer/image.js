// A head's attention over a picture, on the grid of patches that the model really has.

// The tokens of an example that its pictures show.
const drawnAt = (example) => new Set(DATA.images.filter((image) => image.example === example).flatMap((image) => image.positions.filter((at) => at !== null)));

// The row to begin with where every late row is a patch: the class token, or the patch in the middle; else none.
function firstQuery(found) {
  const drawn = drawnAt(found.example), patches = found.rows.filter((at) => drawn.has(at));
  if (!patches.length || !drawn.has(found.rows[found.rows.length - 1])) return null;
  return found.rows.find((at) => !drawn.has(at)) ?? patches[Math.floor(patches.length / 2)];
}

function overlay(image, found) {
  const [rows, columns] = image.grid;
  const width = clamp(columns * 16, 200, 300), height = Math.round((width * image.height) / image.width);
  const svg = draw("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "grid", "font-family": FONT, "aria-label": `Patches of ${shorten(image.name, 40)}: ${rows} rows, ${columns} columns; arrow keys move, Enter locks` });
  const picture = (grey) => draw("image", { href: image.src, width, height, preserveAspectRatio: "none", "image-rendering": image.width < width ? "pixelated" : null, filter: grey ? "url(#grey)" : null });
  svg.append(hatch(), draw("filter", { id: "grey" }, draw("feColorMatrix", { type: "saturate", values: 0 }), draw("feComponentTransfer", {}, ["R", "G", "B"].map((one) => draw(`feFunc${one}`, { type: "linear", slope: 0.6, intercept: 0.3 })))), picture(true));
  const plain = draw("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `The picture ${shorten(image.name, 40)}` }, picture(false));
  const cells = [], left = image.across.map((at) => (at * width) / image.width), top = image.down.map((at) => (at * height) / image.height);
  for (let r = 0; r < rows; r++) {
    const line = draw("g", { role: "row" });
    for (let c = 0; c < columns; c++) {
      const at = image.positions[r * columns + c];
      if (left[c + 1] <= left[c] || top[r + 1] <= top[r]) continue;
      const node = draw("rect", { role: "gridcell", class: "patch", x: left[c], y: top[r], width: left[c + 1] - left[c], height: top[r + 1] - top[r], fill: "none", stroke: "#ffffff", "stroke-width": 0.4, "stroke-opacity": 0.6 });
      line.append(node);
      cells.push({ node, row: r, column: c, at });
    }
    svg.append(line);
  }
  const [between, below] = image.borders;
  const borders = (svg) => svg.append(...between.map((at) => (at * width) / image.width).map((x) => draw("path", { class: "tile", d: `M${x} 0V${height}` })), ...below.map((at) => (at * height) / image.height).map((y) => draw("path", { class: "tile", d: `M0 ${y}H${width}` })));
  [svg, plain].forEach(borders);
  const show = (position) => {
    const weights = weightsAt(found, position);
    for (const { node, row, column, at } of cells) {
      const weight = at === null || weights === null ? null : weights.get(at) ?? 0;
      const strength = weight === null ? 0 : state.root ? Math.sqrt(weight / found.scale) : weight / found.scale;
      const chosen = at !== null && at === position;
      put(node, { fill: weight === null ? "url(#hatch)" : along(ORANGE, 0.35 + 0.65 * strength), "fill-opacity": weight === null ? 0.5 : strength ? clamp(0.15 + 0.8 * strength, 0, 0.95) : 0,
        stroke: chosen ? "#000000" : "#ffffff", "stroke-width": chosen ? 2.5 : 0.4, "stroke-opacity": chosen ? 1 : 0.6, "aria-label": `row ${row}, column ${column}: ${weight === null ? "no token" : number(weight)}`, "aria-selected": String(chosen) }, []);
    }
  };
  const hear = (tell, rest) => {
    const stop = roving(svg, cells, (cell) => cell.at !== null && tell(cell.at));
    const now = cells.find((cell) => cell.at === rest());
    if (now) stop(now);
    for (const { node, at } of cells) {
      if (at === null) continue;
      const lock = () => change({ token: state.token === at ? null : at });
      put(node, { "data-place": at, mouseenter: () => tell(at), mouseleave: () => tell(rest()), click: lock, keydown: (event) => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); lock(); } if (event.key === "Escape") change({ token: null }); } }, []);
    }
  };
  const outside = DATA.examples[image.example].tokens.length - image.positions.filter((at) => at !== null).length;
  const figure = el("figure", { class: "picture" }, el("div", { class: "pair" }, el("div", { class: "scroll" }, svg), el("div", { class: "scroll" }, plain)),
    el("figcaption", {}, el("bdi", { text: shorten(image.name, 60) }), `: ${rows} × ${columns} patches${between.length || below.length ? ` in ${below.length + 1} × ${between.length + 1} tiles` : ""}; ${outside} other tokens below; scale 0 to ${number(found.scale)} for every head`));
  return { figure, show, hear };
}
