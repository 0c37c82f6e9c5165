// Keys of the page, and the list of them behind "?".

const KEYS = [
  ["?", "this list"], ["/", "find a head"], ["j and k", "the next and the previous head, by layer"], ["l", "lock the head that is shown, or let it go"], ["p", "pin it beside others, or unpin it"],
  ["e and E", "the next and the previous example"], ["w", "turn round: what a token looks at, or what looks at it"], ["v", "tokens or lines"], ["s", "save the card of the head"],
  ["arrow keys", "move in the map, the thumbnails, the tokens and the lines"], ["Enter", "lock the head or the token that has the focus"], ["Esc", "close, then let go of the token, then of the head"]];

let listening = true; // single keys can be switched off, for those whose software types them

function keysDialog() {
  const off = el("input", { type: "checkbox", id: "single-keys", change: () => { listening = off.checked; } });
  off.checked = listening;
  const close = el("button", { type: "button", click: () => dialog.close(), text: "Close" });
  const dialog = el("dialog", { id: "keys", "aria-labelledby": "keys-title", close: () => { if (document.activeElement === document.body) $("open-keys").focus(); }, click: (event) => { if (event.target === dialog) dialog.close(); } },
    el("div", {}, el("h2", { id: "keys-title", text: "Keys" }), el("dl", { class: "keys" }, KEYS.map(([name, what]) => el("div", {}, el("dt", {}, el("kbd", { text: name })), el("dd", { text: what })))),
      el("p", { class: "about", text: "A click on a head or a token locks it: it stays whatever the pointer passes over, until it is clicked again, Esc is pressed or another is clicked. Shift and a click pins a head." }),
      el("p", {}, el("label", { class: "choice", for: "single-keys" }, off, " single letters act on the page")), close));
  document.body.append(dialog);
  const open = () => { if (!dialog.open) { closeMenu(); dialog.showModal(); close.focus(); } };
  $("bar").append(goCompare(), el("button", { type: "button", id: "open-keys", "aria-haspopup": "dialog", "aria-label": "Keys of this page", click: open, text: "?" }));
  document.addEventListener("keydown", (event) => pressed(event, open));
}

const typing = (node) => node.matches("input:not([type=checkbox]):not([type=range]), textarea, select, [contenteditable]");

function pressed(event, open) {
  if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]") || openMenu) return;
  if (event.key === "Escape") { if (typing(event.target)) return; if (state.token !== null) change({ token: null }); else if (state.locked) letGo(); return; }
  const act = { "?": open, "/": () => $("search").focus(), j: () => step(1), k: () => step(-1), l: () => (state.locked ? letGo() : state.head !== null && hold(headShown())), p: () => headShown() !== null && pin(headShown()),
    e: () => otherExample(1), E: () => otherExample(-1), w: () => change({ way: state.way === "from" ? "to" : "from" }), v: () => change({ lines: !state.lines }), s: () => { const button = $("card").querySelector(".menu > button"); if (button) button.click(); } }[event.key];
  if (!act || typing(event.target) || (!listening && event.key !== "?")) return;
  if (event.key === "p" && event.target.closest("#map")) return; // the map pins the cell that has the focus
  event.preventDefault();
  act();
}

// The next of the heads that the search and the filters leave.
function step(by) {
  const some = picked(), now = some.indexOf(state.head);
  if (some.length) hold(some[now < 0 ? 0 : (now + by + some.length) % some.length]);
}

function otherExample(by) {
  const some = headShown() === null ? [] : examplesOf(headShown());
  if (some.length) change({ example: some[(some.indexOf(exampleShown(headShown())) + by + some.length) % some.length] });
}
