// Pictures that are as wide as the room they have, and are drawn again when it changes.

const LEAST = 250, STEP = 8;
const roomOf = (box) => Math.max(LEAST, (box.clientWidth || 640) - 6);

function fitted(box, paint) {
  let width = roomOf(box);
  new ResizeObserver(() => {
    const now = roomOf(box);
    if (!box.clientWidth || Math.abs(now - width) < STEP) return;
    width = now;
    paint();
  }).observe(box);
}

// Labels beside their points, at most one in each place and none over another point: the first that asks has it.
function labeller(points, left, right) {
  const taken = points.map(([x, y]) => [x - 3, y - 3, x + 3, y + 3]);
  return (x, y, r, text, must) => {
    const wide = text.length * 6.2, spots = [[x + r + 3, y + 4], [x - r - 3 - wide, y + 4], [x - wide / 2, y - r - 3], [x - wide / 2, y + r + 12]];
    for (const [n, [at, base]] of spots.entries()) {
      const box = [at - 1, base - 10, at + wide + 1, base + 3];
      const last = must && n === spots.length - 1;
      if (!last && (box[0] < left || box[2] > right || taken.some((one) => box[0] < one[2] && box[2] > one[0] && box[1] < one[3] && box[3] > one[1]))) continue;
      taken.push(box);
      return draw("text", { x: at, y: base, "paint-order": "stroke", stroke: "#ffffff", "stroke-width": 3, fill: "#000000", text });
    }
    return null;
  };
}

// What is known of a head in a few lines, for the box at the pointer.
function headTip(head, m = state.metric) {
  const one = HEADS[head], roles = ((DATA.cards[one.site] || {}).roles || []).slice(0, 3);
  const said = roles.map(([name, size]) => shorten(name, 30) + (missing(size) ? "" : ` ${number(size)}`)).join(", ");
  return [one.site, METHODS[m] ? `${shorten(METHODS[m].name, 44)} ${number(score(m, head), METHODS[m].kind === "signed")}` : "", ...tipWords(m, head), said, state.pins.includes(head) ? "pinned" : ""];
}

function tipWords(m, head) {
  const method = METHODS[m], signed = method && method.kind === "signed";
  if (!method || missing(score(m, head))) return [];
  const low = score(m, head, "low"), high = score(m, head, "high"), checked = score(m, head, "verified");
  return [missing(low) || missing(high) ? "" : `interval ${number(low, signed)} to ${number(high, signed)}`,
    signed && !beyond(m, head) ? "within the noise" : signed && !sure(m, head) ? "the interval holds 0" : "",
    checked === true ? "exact patching agrees" : checked === false ? "exact patching disagrees" : ""];
}
