// In the notebook that holds the page in a frame: tells it whether the notebook is dark (JupyterLab, what nbconvert
// writes, VS Code), now and when that changes. Elsewhere it says nothing, and the page follows the system.
const darkNow = () => {
  const { jpThemeLight } = document.body.dataset, has = (name) => document.body.classList.contains(name);
  if (jpThemeLight !== undefined) return jpThemeLight === "false";
  if (has("vscode-dark") || has("vscode-high-contrast")) return true;
  return has("vscode-light") || has("vscode-high-contrast-light") ? false : null;
};

function keepTheme(frame) {
  const tell = () => { if (frame.contentWindow) frame.contentWindow.postMessage({ interp: "theme", dark: darkNow() }, "*"); };
  const watching = new MutationObserver(tell);
  watching.observe(document.body, { attributes: true, attributeFilter: ["class", "data-jp-theme-light"] });
  frame.addEventListener("load", tell);
  tell();
  return () => watching.disconnect();
}
