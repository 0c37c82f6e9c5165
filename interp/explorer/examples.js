// Examples by what they say: a menu of texts, and what is different where they begin alike.

const NO_WORD = /^\s*(?:\(\d+,\d+\)|<[^<>\s]+>|\[[A-Z]+\]|special .*)$/; // patches by their place, and marks such as <bos>

function textOf(example) {
  const words = DATA.examples[example].tokens.filter((token) => !NO_WORD.test(token));
  return words.slice(0, 400).join(words.some((word) => /^[\s▁Ġ]/.test(word)) ? "" : " ").replace(/[▁Ġ]/g, " ").replace(/\s+/g, " ").trim();
}

function sharedStart(texts) {
  const [first, ...others] = texts;
  let n = 0;
  while (n < first.length && others.every((text) => text[n] === first[n])) n++;
  return n;
}

// Names, one an example: its text, from a little before the place where the texts begin to differ.
const labelled = new Map();
function labelsOf(examples) {
  const known = examples.join(",");
  if (labelled.has(known)) return labelled.get(known);
  const texts = examples.map(textOf), alike = texts.length > 1 && texts.every(Boolean) ? sharedStart(texts) : 0;
  const from = alike > 30 && new Set(texts).size > 1 ? texts[0].lastIndexOf(" ", alike - 12) + 1 : 0;
  const labels = examples.map((i, n) => {
    const pictures = DATA.images.filter((image) => image.example === i).map((image) => image.name), name = DATA.examples[i].name;
    return texts[n] ? `${shorten(`${from ? "… " : ""}${texts[n].slice(from)}`, 60)} (${shorten(name, 24)})` : shorten([name, ...pictures].join(": "), 60);
  });
  labelled.set(known, labels);
  return labels;
}

function exampleMenu(id, examples, shown) {
  const labels = labelsOf(examples);
  const menu = el("select", { id, class: "texts", "data-act": id, change: () => change({ example: Number(menu.value) }) }, examples.map((i, n) => el("option", { value: i, text: labels[n] })));
  menu.value = String(shown);
  return el("label", { class: "choice", for: id }, "Example ", menu);
}
