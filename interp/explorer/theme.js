// Dark or light as the system is, unless a notebook that holds this page says what it is itself.

const DARK = matchMedia("(prefers-color-scheme: dark)");
let themeTold = null;

const follow = () => { document.documentElement.dataset.theme = (themeTold ?? DARK.matches) ? "dark" : "light"; };
DARK.addEventListener("change", follow);
window.addEventListener("message", (event) => {
  if (event.source !== window.parent || window.parent === window || !event.data || event.data.interp !== "theme") return;
  themeTold = typeof event.data.dark === "boolean" ? event.data.dark : null;
  follow();
});
follow();
