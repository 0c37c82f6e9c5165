"""Every figure that `result.figure` and `interp.figures` draw, as PDF, on models that ship with the package.

    python experiments/figures.py --out docs/figures

Writes one small PDF a figure, and as PNG what `docs/figures.md` shows. The same versions give the same bytes: no dates,
one thread, fixed seeds. Cost: about two minutes of one core. Ends with one JSON line: how many files and bytes.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path

import torch

import interp
from interp import figures
from interp.figures import Figure

DPI = 130
"""Of what the page shows."""
Made = Iterator[tuple[str, Figure, str]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/figures"))
    out = parser.parse_args().out
    torch.set_num_threads(1)
    out.mkdir(parents=True, exist_ok=True)
    began, count, size = time.perf_counter(), 0, 0
    for part in (language_model, circuits, long_texts, pictures):
        for name, figure, width in part():
            files = [
                figure.save(out / f"{name}.pdf", width=width),
                figure.save(out / f"{name}.png", width=width, dpi=DPI),
            ]
            count, size = count + 1, size + sum(file.stat().st_size for file in files)
            print(f"{name}: {figure}")
    took = time.perf_counter() - began
    print(json.dumps({"experiment": "figures", "figures": count, "bytes": size, "seconds": round(took, 1)}))


def language_model() -> Made:
    """Heads, positions, patterns, measures and roles of a small model that does indirect object identification."""
    m = interp.load("zoo:ioi")
    task = interp.tasks.ioi(m, n=24).filter()
    how = {"base": task.corrupt, "source": task.clean, "metric": task.metric}
    heads = interp.patch(m, **how, sites="L*.H*.z")
    yield "heads", heads.figure(), "column"
    yield "bars", heads.figure(n=10), "column"
    one = task.take([0])
    places = interp.patch(
        m, base=one.corrupt, source=one.clean, metric=one.metric, sites="L*.resid_pre", positions="each"
    )
    yield "positions", places.figure(tokens=True), "page"
    yield "pattern", figures.attention(m, one.clean, "L1.H7"), "column"
    yield "patterns", figures.attention(m, one.clean, ["L0.H1", "L0.H2", "L1.H7"]), "page"
    relp = interp.attribute(m, **how, sites="L*.H*.z", method="relp", verify=0)
    yield "scatter", figures.scatter(heads, relp, names=("exact effect", "estimate by RelP")), "column"
    yield "roles", interp.head_roles(m).figure(n=12), "page"


def circuits() -> Made:
    """A circuit, and how faithful circuits of many sizes are."""
    m = interp.load("zoo:ioi")
    task = interp.tasks.ioi(m, n=24).filter()
    scores = interp.edges(m, base=task.clean, source=task.corrupt, metric=task.metric, method="eap-ig", steps=5)
    circuit = scores.circuit(fraction=0.05, signed=True)
    yield "circuit", circuit.figure(), "page"
    judged = interp.faithfulness(m, circuit, task.heldout, random=20, scores=scores)
    yield "faithfulness", judged.figure(), "column"


def long_texts() -> Made:
    """What a head retrieves, by length and depth, and by head."""
    m = interp.load("zoo:needle")
    needles = interp.tasks.needle(m, n=2, whole=True, lengths=[64, 128, 192, 256], depths=[0.1, 0.3, 0.5, 0.7, 0.9])
    found = interp.retrieval_heads(m, needles)
    fifth = found.top(5)["site"].iloc[-1]  # the first four score 1 everywhere
    yield "retrieval-heads", found.figure(), "column"
    yield "retrieval", found.figure(by="length", site=fifth), "column"


def pictures() -> Made:
    """A picture with attention and with effects on it, and what is left when heads are cut out."""
    m = interp.load("zoo:shapes-vit")
    task = interp.tasks.shapes(m, n=24).filter()
    picture, x = task.rows[0].image, task.clean
    how = {"base": task.corrupt, "source": task.clean, "metric": task.metric}
    effects = interp.patch(m, **how, sites="L1.resid_pre", positions="each")
    yield "picture-effects", effects.over_image(x, picture, row=0), "column"
    seen = m.run(x, record="L*.pattern")
    names = [f"L{layer}.H{head}" for layer in range(2) for head in range(3)]
    grids = []
    for name in names:
        layer, head = name.split(".H")
        grids.append(on_grid(x, seen[f"{layer}.pattern"][0, int(head), 0]))
    yield "picture-attention", figures.over_picture(torch.stack(grids), picture, names=names, signed=False), "page"
    scores = interp.importance(m, task, by=["zero"]).scores("zero")
    left = interp.prune(m, scores, keep_fraction=0.5, how="cut").curve(interp.tasks.shapes(m, n=64, split="heldout"))
    yield "pruning", left.figure(), "column"


def on_grid(x: interp.Inputs, weights: torch.Tensor) -> torch.Tensor:
    """Weights of the class token on patches, in their places."""
    labels = x.roles
    at = labels.patch[0].nonzero().flatten()
    rows, columns = labels.row[0, at], labels.col[0, at]
    grid = torch.zeros(int(rows.max()) + 1, int(columns.max()) + 1)
    grid[rows, columns] = weights[at].float()
    return grid


if __name__ == "__main__":
    main()
