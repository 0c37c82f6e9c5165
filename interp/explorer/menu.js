// One menu for everything that can be saved of a part of the page: a picture, its numbers, or a link to this view.

let openMenu = null;

function closeMenu(focus = false) {
  if (!openMenu) return;
  const { button, list } = openMenu;
  openMenu = null;
  list.remove();
  button.setAttribute("aria-expanded", "false");
  if (focus) button.focus();
}

// A button that opens a list of things to do; arrow keys move in it, Escape and a click elsewhere close it.
function menuButton(label, name, items) {
  const home = el("span", { class: "menu" });
  const button = el("button", { type: "button", "aria-haspopup": "menu", "aria-expanded": "false", "aria-label": name, click: () => (openMenu && openMenu.button === button ? closeMenu() : open()),
    keydown: (event) => { if (event.key === "ArrowDown") { event.preventDefault(); open(); } } }, label, " ", el("span", { "aria-hidden": "true", text: "▾" }));
  const open = () => {
    closeMenu();
    const entries = items().map(([text, act, stays]) => el("button", { type: "button", role: "menuitem", tabindex: -1, click: (event) => { if (!stays) closeMenu(true); act(event.currentTarget); }, text }));
    const list = el("div", { class: "list", role: "menu", "aria-label": name, keydown: (event) => walk(event, entries) }, entries);
    home.append(list);
    button.setAttribute("aria-expanded", "true");
    openMenu = { button, list, home };
    const box = list.getBoundingClientRect(), room = document.documentElement.clientWidth - 6;
    if (box.right > room) list.style.left = `${room - box.right}px`;
    entries[0].focus();
  };
  return put(home, {}, [button]);
}

function walk(event, entries) {
  const now = entries.indexOf(event.target), to = { ArrowDown: now + 1, ArrowUp: now - 1, Home: 0, End: entries.length - 1 }[event.key];
  if (event.key === "Escape" || event.key === "Tab") { if (event.key === "Escape") { event.preventDefault(); event.stopPropagation(); } closeMenu(true); }
  if (to === undefined || now < 0) return;
  event.preventDefault();
  entries[(to + entries.length) % entries.length].focus();
}

document.addEventListener("pointerdown", (event) => { if (openMenu && !openMenu.home.contains(event.target)) closeMenu(); });
document.addEventListener("focusin", (event) => { if (openMenu && !openMenu.home.contains(event.target)) closeMenu(); });

// The address of this view, to be copied; a page in a notebook has none and gives what stands after #.
function giveLink(item) {
  const link = location.protocol === "about:" ? fragment() : location.href.replace(/#.*$/, "") + fragment();
  const box = el("input", { type: "text", class: "link", readonly: true, value: link, "aria-label": "Link to this view", keydown: (event) => { if (event.key === "Escape") { event.stopPropagation(); closeMenu(true); } } });
  const said = el("p", { class: "about", "aria-live": "polite", text: "Ctrl+C copies it." });
  item.after(box, said);
  item.remove();
  box.focus();
  box.select();
  if (navigator.clipboard && window.parent === window) navigator.clipboard.writeText(link).then(() => { said.textContent = "Copied."; }, () => { said.textContent = "Ctrl+C copies it."; });
}

const asObjects = ([names, ...rows]) => rows.map((row) => Object.fromEntries(names.map((name, i) => [name, row[i] ?? null])));
const asJson = (value) => JSON.stringify(value, null, 1) + "\n";

// `picture` makes an SVG, `rows` a table with names in its first line, `whole` what JSON holds instead of these rows.
function exportsOf(name, picture, rows, whole = null) {
  const items = () => [
    ...(picture ? [["PNG", () => savePng(`${name}.png`, picture())], ["SVG", () => save(`${name}.svg`, "image/svg+xml", asText(picture()))]] : []),
    ...(rows ? [["CSV", () => save(`${name}.csv`, "text/csv", csv(rows()))]] : []),
    ...(rows || whole ? [["JSON", () => save(`${name}.json`, "application/json", asJson(whole ? whole() : asObjects(rows())))]] : []),
    ["Link to this view", giveLink, true]];
  return el("span", { class: "exports" }, menuButton("Save", `Save ${name}`, items));
}
