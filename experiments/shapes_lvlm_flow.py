"""How a picture reaches the answer: image patches, heads and layers of a vision-language model, on generated scenes.

    python experiments/shapes_lvlm_flow.py [--model zoo:shapes-lvlm] [--n 32] [--out runs/shapes_lvlm_flow]

Two pairs of runs. The same question about two pictures, one with the shape and one without it: every image token's
residual is patched in every layer, and the effects are drawn over the pictures. One picture and two questions, about a
shape that is there and one that is not: where the question sits, layer by layer. Then attention edges are blocked in
windows of layers (Geva et al. 2023, arXiv 2304.14767). Pictures, tables and a page go to the report directory.
"""

from __future__ import annotations

import argparse
import html
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import interp
from interp.prompts.rows import Row
from interp.prompts.scenes import SHAPES, ask
from interp.results.effects import Effects
from interp.tasks.task import Task

ZOOM = 6
PREFIX = "<image> "


def main() -> None:
    given = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    given.add_argument("--model", default="zoo:shapes-lvlm")
    given.add_argument("--n", type=int, default=32)
    given.add_argument("--out", type=Path, default=Path("runs/shapes_lvlm_flow"))
    args = given.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message=".*patched in full forward passes")
    m = interp.load(args.model)
    asked = interp.tasks.shapes(m, n=2 * args.n, style="yes_no")
    pictures = both_right(m, asked.take([i for i, row in enumerate(asked.rows) if row.meta["answer"] == "yes"]))
    questions = both_right(m, two_questions(pictures, m))
    args.out.mkdir(parents=True, exist_ok=True)
    tables: dict[str, Effects] = {}

    how: dict[str, Any] = {"base": pictures.corrupt, "source": pictures.clean, "metric": pictures.metric}
    each = interp.patch(m, sites="text.L*.resid_pre", positions="each", **how)
    patches = by_patch(each, pictures.clean)
    touched = touching(pictures)
    tables["pictures-positions"] = each
    tables["pictures-heads"] = interp.patch(m, sites=["text.L*.H*.z", "vision.L*.H*.z"], **how)
    tables["pictures-direct"] = interp.patching.direct_effect(m, pictures.clean, metric=pictures.metric)
    draw(args.out / "patches.png", pictures, patches)

    flow = {"pictures": by_group(m, pictures), "questions": by_group(m, questions)}
    edges: dict[str, Any] = {
        "image to last": [("image", "last")],
        "image to shape": [("image", pictures.positions["shape"])],
        "shape to last": [(pictures.positions["shape"], "last")],
    }
    for name, edge in edges.items():
        for window in (1, 2):
            key = f"{name}, {window} layers"
            tables[key] = interp.patching.knockout(m, pictures.clean, metric=pictures.metric, edges=edge, window=window)
    for name, effects in tables.items():
        effects.save(args.out / name.replace(" ", "-").replace(",", ""))

    share = (patches * touched).sum((1, 2, 3)) / patches.sum((1, 2, 3))
    found = {
        "experiment": "shapes_lvlm_flow",
        "model": args.model,
        "rows": {"pictures": len(pictures), "questions": len(questions)},
        "metric": {"base": mean(each.base), "source": mean(each.source)},
        "share_in_touching_patches": [round(float(v), 3) for v in share],
        "share_of_the_picture_they_are": round(float(touched.double().mean()), 3),
        "flow": flow,
        "text_heads": best(tables["pictures-heads"], "text."),
        "vision_heads": best(tables["pictures-heads"], "vision."),
        "direct_heads": list(tables["pictures-direct"].only("result").top(3)["site"]),
        "blocked": {name: [round(float(v), 2) for v in tables[name].mean] for name in tables if "layers" in name},
        "out": str(args.out),
    }
    page(args.out / "report.html", found)
    print(json.dumps(found))


def two_questions(task: Task, m: interp.Model) -> Task:
    """One picture a row, asked for a shape that is there and, of equal length, one that is not."""
    rows = []
    for row in task.rows:
        absent = next(shape for shape in SHAPES if shape not in row.meta["objects"])
        there, not_there = (PREFIX + ask(shape) for shape in (row.meta["about"], absent))
        rows.append(Row(there, not_there, (" yes",), (" no",), dict(row.positions), dict(row.meta), row.image))
    return Task("two questions", tuple(rows)).on(m)


def both_right(m: interp.Model, task: Task) -> Task:
    """The rows where the clean side is answered with the answer and the corrupt side is not."""
    sides = [task.metric(m.run(inputs)["logits"], inputs) for inputs in (task.clean, task.corrupt)]
    kept = ((sides[0] > 0) & (sides[1] < 0)).nonzero().flatten().tolist()
    print(f"{task.name}: {len(kept)} of {len(task)} pairs are answered right on both sides and kept")
    return task.take(kept)


def by_patch(each: Effects, x: Any) -> Tensor:
    """Effects of image tokens as [layer, example, row, column]."""
    assert each.positions is not None
    values = each.values.reshape(-1, len(each.positions), each.values.shape[1])
    rows, cols = int(x.roles.row.max()) + 1, int(x.roles.col.max()) + 1
    grid = torch.zeros(len(values), x.batch, rows, cols, dtype=values.dtype)
    for b, p in x.roles.patch.nonzero().tolist():
        grid[:, b, x.roles.row[b, p], x.roles.col[b, p]] = values[:, p, b]
    return grid


def touching(task: Task) -> Tensor:
    """[example, row, column], whether a patch overlaps the box of the shape that was asked for."""
    x = task.clean
    boxes, roles = x.roles.boxes(), x.roles
    rows, cols = int(roles.row.max()) + 1, int(roles.col.max()) + 1
    found = torch.zeros(x.batch, rows, cols, dtype=torch.bool)
    for b, p in roles.patch.nonzero().tolist():
        left, top, right, bottom = boxes[b, p].tolist()
        meta = task.rows[b].meta
        x0, y0, x1, y1 = meta["boxes"][meta["objects"].index(meta["about"])]
        found[b, roles.row[b, p], roles.col[b, p]] = left < x1 and right > x0 and top < y1 and bottom > y0
    return found


def by_group(m: interp.Model, task: Task) -> dict[str, list[float]]:
    """Normalised effect of patching a group of positions of the residual, layer by layer."""
    how: dict[str, Any] = {"base": task.corrupt, "source": task.clean, "metric": task.metric}
    places: dict[str, Any] = {"image": "image", "shape": task.positions["shape"], "last": "last"}
    found = {}
    for name, positions in places.items():
        effects = interp.patch(m, sites="text.L*.resid_pre", positions=positions, **how)
        found[name] = [round(float(v), 3) for v in effects.normalised]
    return found


def best(effects: Effects, start: str) -> list[str]:
    """The five largest of a tower."""
    frame = effects.top(len(effects.sites))
    mine = frame[frame.site.str.startswith(start)].head(5)
    return [f"{site} {value:+.2f}" for site, value in zip(mine.site, mine.estimate, strict=True)]


def mean(values: Tensor | None) -> float | None:
    return None if values is None else round(float(values.mean()), 3)


def draw(path: Path, task: Task, patches: Tensor, *, most: int = 6) -> None:
    """One line per picture: the picture, then the effect of its patches in each layer, red for and blue against."""
    lines = []
    for b in range(min(most, len(task))):
        picture = np.asarray(task.rows[b].image.convert("RGB"), dtype=np.float32)
        bound = float(patches[:, b].abs().max()) or 1.0
        cells = [picture, *(over(picture, patches[layer, b] / bound) for layer in range(len(patches)))]
        lines.append(np.concatenate([np.pad(cell, ((0, 2), (0, 2), (0, 0)), constant_values=255) for cell in cells], 1))
    whole = Image.fromarray(np.concatenate(lines, 0).clip(0, 255).astype(np.uint8))
    whole.resize((whole.width * ZOOM, whole.height * ZOOM), Image.Resampling.NEAREST).save(path)


def over(picture: np.ndarray, effect: Tensor) -> np.ndarray:
    """The picture in grey under the effects [row, column], from -1 to 1."""
    side = picture.shape[0] // effect.shape[0]
    strength = np.kron(effect.numpy(), np.ones((side, side)))[..., None]
    ink = np.where(strength > 0, np.array([220.0, 30.0, 30.0]), np.array([40.0, 60.0, 220.0]))
    grey = np.repeat(picture.mean(-1, keepdims=True) * 0.5 + 110, 3, -1)
    return grey * (1 - np.abs(strength)) + ink * np.abs(strength)


def page(path: Path, found: dict[str, Any]) -> None:
    """The numbers and the pictures on one page."""
    text = html.escape(json.dumps(found, indent=1))
    path.write_text(
        "<!doctype html><meta charset='utf-8'><title>How a picture reaches the answer</title>"
        "<p>Each line: the picture, then the effect of patching its image tokens in each text layer"
        " (red: towards the answer).</p><img src='patches.png' alt='effects of image patches by layer'>"
        f"<pre>{text}</pre>"
    )


if __name__ == "__main__":
    main()
