// A small box at the pointer, or beside what has the focus of the keyboard, that says what a mark stands for. Escape
// puts it away. It says nothing that the mark's own label does not, so it is silent for a screen reader.

const TIPS = new WeakMap();
const tipBox = el("div", { id: "tip", class: "tip", "aria-hidden": "true", hidden: true });
let tipOwner = null, tipByFocus = false;

// `says` gives lines (text or nodes), the first one bold; one that takes an event is asked again at every move.
const tipped = (node, says) => { TIPS.set(node, says); return node; };

function ownerOf(node) {
  for (let at = node; at && at !== document; at = at.parentNode) if (TIPS.has(at)) return at;
  return null;
}

function putAway() {
  tipOwner = null;
  tipBox.hidden = true;
}

function showTip(owner, x, y, event) {
  const says = TIPS.get(owner);
  if (owner !== tipOwner || says.length) {
    const lines = (says(event) || []).filter((line) => line !== null && line !== "");
    if (!lines.length) { putAway(); return; }
    tipBox.replaceChildren(...lines.map((line, n) => el(n ? "div" : "b", {}, line)));
  }
  tipOwner = owner;
  tipBox.hidden = false;
  const { width, height } = tipBox.getBoundingClientRect(), room = document.documentElement.clientWidth, tall = window.innerHeight;
  tipBox.style.left = `${clamp(x + 14 + width > room ? x - width - 10 : x + 14, 2, Math.max(2, room - width - 2))}px`;
  tipBox.style.top = `${clamp(y + 16 + height > tall ? y - height - 10 : y + 16, 2, Math.max(2, tall - height - 2))}px`;
}

document.body.append(tipBox);
document.addEventListener("pointermove", (event) => {
  const owner = ownerOf(event.target);
  if (owner) { tipByFocus = false; showTip(owner, event.clientX, event.clientY, event); } else if (!tipByFocus) putAway();
});
document.documentElement.addEventListener("pointerleave", () => { if (!tipByFocus) putAway(); });
document.addEventListener("focusin", (event) => {
  const owner = event.target.matches(":focus-visible") ? ownerOf(event.target) : null;
  if (!owner || TIPS.get(owner).length) return;
  const at = event.target.getBoundingClientRect();
  tipByFocus = true;
  showTip(owner, at.left + at.width / 2, at.bottom - 8);
});
document.addEventListener("focusout", () => { if (tipByFocus) putAway(); tipByFocus = false; });
document.addEventListener("keydown", (event) => { if (event.key === "Escape") putAway(); });
document.addEventListener("scroll", () => { if (!tipByFocus) putAway(); }, { capture: true, passive: true });
views.push(() => { if (tipOwner && !tipOwner.isConnected) putAway(); });
