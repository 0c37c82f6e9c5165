// What is too wide for the screen scrolls by itself, and with the keyboard: then, and only then, it is a stop of the tab key.

const REACHED = "data-reached";

function reachable() {
  for (const one of document.querySelectorAll(`.scroll:not([role]), .scroll[${REACHED}]`)) {
    const over = one.scrollWidth > one.clientWidth + 1 || one.scrollHeight > one.clientHeight + 1;
    if (over === one.hasAttribute(REACHED)) continue;
    const given = { [REACHED]: "", tabindex: "0", role: "group", "aria-label": "Scrolls sideways" };
    for (const [name, value] of Object.entries(given)) if (over) one.setAttribute(name, value); else one.removeAttribute(name);
  }
}

function keepReachable() {
  let waiting = false;
  const soon = () => { if (!waiting) { waiting = true; requestAnimationFrame(() => { waiting = false; reachable(); }); } };
  new MutationObserver(soon).observe(document.body, { childList: true, subtree: true });
  window.addEventListener("resize", soon);
  document.addEventListener("toggle", soon, true);
  reachable();
}
