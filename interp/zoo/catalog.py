"""The models that ship with the toolkit: their names, cards and files, and how to export one.

Trained models are folders under `interp/zoo/` in hub layout with half-precision weights, a `card.md` (prose) and a
`card.json` (numbers, re-measured by `pytest -m zoo`). Planted models have no weights on disk: they are code in
`interp/planted/`, built anew each time, and their card is their docstring and answer key. `export` writes either as a
directory that `from_pretrained` of plain transformers loads, in float32, with the same logits.
Limits: `zoo:induction` is a plain module, which transformers has no class for; its export is for `interp.load`. A
denoiser is loaded by diffusers, and its processor is the pipeline that calls it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from interp.kernels.errors import InterpError

if TYPE_CHECKING:
    from interp.model import Model

ROOT = Path(__file__).parent
DENOISER = "PixArtTransformer2DModel"
Size = tuple[int, int, int]
"""Width, layers and heads of one tower."""
GATE = ("GPT2LMHeadModel", 9_988, ((32, 2, 4),))
PLANTED: dict[str, tuple[str, int, tuple[Size, ...]]] = {
    "planted-decoder": ("GPT2LMHeadModel", 5_047_300, ((768, 2, 6),)),
    "planted-vit": ("ViTForImageClassification", 49_876, ((64, 2, 4),)),
    "planted-lvlm": ("LlavaForConditionalGeneration", 683_792, ((256, 2, 4), (64, 2, 4))),
    "planted-and": GATE,
    "planted-or": GATE,
    "planted-backup": GATE,
    "planted-cancel": GATE,
    "planted-saturated": GATE,
}
"""Class, number of parameters, size of each tower (text first); a test counts them."""


class CatalogError(InterpError):
    """A zoo model that is not there, or cannot be taken where it was asked to go."""


@dataclass(frozen=True)
class ZooEntry:
    """One model of the zoo; figures are those of its card, each with the range that was wanted."""

    name: str
    kind: Literal["trained", "planted"]
    architecture: str
    parameters: int
    towers: tuple[Size, ...]
    megabytes: float
    core_hours: float
    figures: Mapping[str, Mapping[str, Any]]

    @property
    def summary(self) -> str:
        """The figures in a line; a star marks one that missed what was wanted."""
        if self.kind == "planted":
            return "weights set by hand; the answer key is on the card"
        return "  ".join(f"{name} {one['value']:.3g}{_star(one)}" for name, one in self.figures.items())


def _star(figure: Mapping[str, Any]) -> str:
    least, most = figure["wanted"]
    value = figure["value"]
    return "*" if (least is not None and value < least) or (most is not None and value > most) else ""


def entries() -> tuple[ZooEntry, ...]:
    """Every model there is, the trained ones first."""
    folders = sorted(ROOT.iterdir()) if ROOT.is_dir() else []
    trained = [_trained(folder) for folder in folders if (folder / "card.json").exists()]
    planted = [ZooEntry(name, "planted", *shape, 0.0, 0.0, {}) for name, shape in PLANTED.items()]
    return (*trained, *planted)


def _trained(folder: Path) -> ZooEntry:
    card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    towers = tuple(
        (tower["width"], tower["layers"], tower["heads"])
        for tower in ([card[part] for part in ("text", "vision") if part in card] or [card])
    )
    return ZooEntry(
        folder.name,
        "trained",
        card["class"],
        card["parameters"],
        towers,
        card["megabytes"],
        card["core_hours"],
        card["figures"],
    )


def entry(name: str) -> ZooEntry:
    """One model by name, with or without `zoo:`."""
    short = name.removeprefix("zoo:")
    found = {one.name: one for one in entries()}
    if short not in found:
        near = get_close_matches(short, found, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise CatalogError(f"expected a zoo model among {', '.join(found)}, got {short!r}.{hint}")
    return found[short]


def card(name: str) -> str:
    """What the model is, can do, and cannot, with its figures."""
    one = entry(name)
    if one.kind == "planted":
        return _planted_card(one)
    folder = ROOT / one.name
    numbers = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    rows = [f"{name:<28} {figure['value']:<10.4g} {_wanted(figure)}" for name, figure in one.figures.items()]
    known = [f"{key}: {value}" for key, value in numbers.items() if key not in ("figures", "name")]
    return "\n".join([(folder / "card.md").read_text(encoding="utf-8").strip(), "", *known, "", *rows])


def _wanted(figure: Mapping[str, Any]) -> str:
    least, most = figure["wanted"]
    parts = [f"at least {least:g}"] if least is not None else []
    parts += [f"at most {most:g}"] if most is not None else []
    return f"n={figure['n']}, wanted {' and '.join(parts) or 'nothing'}{'  MISSED' if _star(figure) else ''}"


def _planted_card(one: ZooEntry) -> str:
    from interp.planted import GATES, WHOLE, key

    module = import_module(f"interp.planted.{'gates' if one.name in GATES else WHOLE[one.name]}")
    answers = key(one.name)
    heads = [f"{head.site:<12} {head.role:<20} {head.does}" for head in answers.heads]
    sure = [
        f"{' + '.join(e.heads):<22} {e.method:<18} {e.effect:+5.1f}  {'finds' if e.finds else 'misses'}: {e.why}"
        for e in answers.expected
    ]
    title = f"# zoo:{one.name}\n\n{(module.__doc__ or '').strip()}"
    return "\n".join([title, "", *heads, f"{len(answers.null)} null heads", *([""] if sure else []), *sure])


def path(name: str) -> Path:
    """The folder of a trained model."""
    one = entry(name)
    if one.kind == "planted":
        raise CatalogError(f"zoo:{one.name} is code, not a folder: write one with `interp zoo export {one.name} DIR`")
    return ROOT / one.name


def build(name: str) -> tuple[Any, Any]:
    """The module in float32 and eval mode, and its tokenizer or processor."""
    one = entry(name)
    if one.kind == "planted":
        from interp.planted import build as plant

        return plant(one.name)
    from interp.preparing.processors import processor_of

    source = str(ROOT / one.name)
    if one.architecture == "AttentionOnly":
        from interp.zoo.plain import read

        return read(ROOT / one.name), processor_of(source, {"local_files_only": True})
    if one.architecture == DENOISER:
        pipe = _pipeline(ROOT / one.name)
        return pipe.transformer, pipe
    import transformers

    with _without_a_bar():
        module = getattr(transformers, one.architecture).from_pretrained(source, local_files_only=True, dtype="float32")
    return module.eval(), processor_of(source, {"local_files_only": True})


def _pipeline(folder: Path) -> Any:
    """The pipeline of a denoiser, which diffusers has to be there for."""
    if find_spec("diffusers") is None:
        raise CatalogError(f"zoo:{folder.name} is a model of diffusers: pip install 'interp[diffusion]'.")
    from interp.zoo.shapes_pipeline import read

    return read(folder)


@contextmanager
def _without_a_bar() -> Iterator[None]:
    """A small model is read and written before its bar of progress is drawn."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def open_zoo(name: str) -> Model:
    """The model, attached."""
    from interp.model import attach

    return attach(*build(name))


def export(name: str, directory: str | Path) -> Path:
    """Write a directory in hub layout; it appears whole or not at all."""
    one, to = entry(name), Path(directory)
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise CatalogError(f"expected a directory that does not exist or is empty, got {to}")
    from interp.saving import whole

    with whole(to) as new:
        _write(one, new)
        (new / "README.md").write_text(_readme(one), encoding="utf-8")
    return to


def _write(one: ZooEntry, folder: Path) -> None:
    if one.architecture == "AttentionOnly":
        for file in (ROOT / one.name).iterdir():
            if not file.name.startswith("card"):
                shutil.copy(file, folder / file.name)
        return
    module, processor = build(one.name)
    parts = (processor.tokenizer, processor.scheduler) if one.architecture == DENOISER else (processor,)
    with _without_a_bar():
        module.save_pretrained(folder)
    for part in parts:
        part.save_pretrained(folder)


def _readme(one: ZooEntry) -> str:
    library = "diffusers" if one.architecture == DENOISER else "transformers"
    how = f"Load it with `{library}.{one.architecture}.from_pretrained`."
    if one.architecture == "AttentionOnly":
        how = "A plain module, which transformers has no class for; open it with `interp.load`."
    if one.architecture == DENOISER:
        how += " The pipeline around it is `interp.zoo.shapes_pipeline.read(directory)`."
    head = f"---\nlicense: apache-2.0\nlibrary_name: {library}\ntags: [interpretability, interp-zoo]\n---\n"
    return f"{head}\n{card(one.name)}\n\n{how}\n"


def listing() -> str:
    """The table `interp zoo` prints; where there are two towers, text + vision."""
    rows: list[tuple[str, ...]] = [
        ("name", "class", "width", "layers", "heads", "parameters", "MB", "core-hours", "figures")
    ]
    rows += [_line(one) for one in entries()]
    widths = [max(len(row[i]) for row in rows) for i in range(8)]
    lines = [
        "  ".join([*(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=False)), row[8]]) for row in rows
    ]
    total, hours = (sum(getattr(one, key) for one in entries()) for key in ("megabytes", "core_hours"))
    note = (
        f"\n{total:.2f} MB of weights in all, trained in {hours:.2f} core-hours; two towers are text+vision;"
        "\n* missed the figure that was wanted, see `interp zoo card NAME`"
    )
    return "\n".join(line.rstrip() for line in lines) + note


def _line(one: ZooEntry) -> tuple[str, ...]:
    width, layers, heads = ("+".join(map(str, numbers)) for numbers in zip(*one.towers, strict=True))
    trained = one.kind == "trained"
    cost = (f"{one.megabytes:.2f}", f"{one.core_hours:.2f}") if trained else ("code", "-")
    return (
        f"zoo:{one.name}",
        one.architecture,
        width,
        layers,
        heads,
        f"{one.parameters:,}",
        *cost,
        one.summary,
    )


def command(what: str = "list", name: str | None = None, directory: str | None = None) -> str:
    """What `interp zoo WHAT NAME DIRECTORY` prints."""
    if what == "list":
        return listing()
    if name is None:
        raise CatalogError(f"expected a name: interp zoo {what} NAME; the names are in `interp zoo`")
    if what == "card":
        return card(name)
    if what == "path":
        return str(path(name))
    if what != "export":
        raise CatalogError(f"expected list, card, path or export, got {what!r}")
    if directory is None:
        raise CatalogError(f"expected a directory: interp zoo export {name} DIR")
    written = export(name, directory)
    size = sum(file.stat().st_size for file in written.rglob("*") if file.is_file())
    return f"wrote {written} ({size / 1e6:.2f} MB)"
