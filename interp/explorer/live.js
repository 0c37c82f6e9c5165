// Holds the page in a frame of its own, which may run its script and save files and nothing else, and passes on what is
// selected: from the page to the kernel, and from the kernel to the page.
const KEYS = ["head", "pins", "metric", "token", "example"];
const kept = (given) => Object.fromEntries(KEYS.map((key) => [key, (given || {})[key] ?? null]));

function render({ model, el }) {
  const frame = document.createElement("iframe");
  frame.setAttribute("sandbox", "allow-scripts allow-downloads");
  frame.setAttribute("title", "Heads of the model");
  Object.assign(frame.style, { width: "100%", height: `${model.get("height")}px`, border: "0" });
  frame.srcdoc = model.get("page");
  let heard = "";
  const hear = (event) => {
    if (event.source !== frame.contentWindow || !event.data || event.data.interp !== "selected") return;
    heard = JSON.stringify(kept(event.data));
    model.set("selection", kept(event.data));
    model.save_changes();
  };
  const say = () => {
    const wanted = kept(model.get("selection"));
    if (JSON.stringify(wanted) !== heard) frame.contentWindow.postMessage({ interp: "select", ...wanted }, "*");
  };
  frame.addEventListener("load", say);
  window.addEventListener("message", hear);
  model.on("change:selection", say);
  el.append(frame);
  const unwatch = keepTheme(frame);
  return () => {
    unwatch();
    window.removeEventListener("message", hear);
    model.off("change:selection", say);
  };
}
export default { render };
