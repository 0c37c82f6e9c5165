"""Which cheap estimate of patching is right where: atp, atp*, relp and integrated gradients against exact patching.

    python experiments/relp_vs_atp.py                      # every zoo decoder and ViT
    python experiments/relp_vs_atp.py --model zoo:ioi
    python experiments/relp_vs_atp.py --model DIRECTORY    # a checkpoint on disk, with eight IOI prompts

For the residual, attention outputs, MLP outputs and single heads, position by position, in both directions: Pearson
and Spearman correlation of mean effects over the cells that can change, Pearson without the largest cell, overlap of
the ten largest. `all` is Pearson over every cell, identical positions included, as the RelP paper tabulates it. The
prompts for a checkpoint are the four sentences of the RelP demo and their swaps, each corrupted into its neighbour,
denoising, after <bos>: for GPT-2 small the demo's own numbers are .962/.961/.989 (relp) and .735/.982/.436 (atp) for
residual, attention and MLP outputs, in a model whose writing weights were centred first, which this script does not do;
the paper's table has .968/.962/.992 and .753/.979/.195. atp* gives magnitudes and is held against magnitudes.
Writes a table to runs/relp_vs_atp and ends with one JSON line. Cost: a minute per zoo model.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import interp
from interp.attribution.verify import pearson, ranks
from interp.hooks.errors import SiteError
from interp.prompts.rows import Row
from interp.tasks.task import Task

METHODS = ("atp", "atp*", "relp", "ig")
PLACES = {"resid": "L*.resid_pre", "attn": "L*.attn_out", "mlp": "L*.mlp_out", "heads": "L*.H*.z"}
ZOO = {"zoo:ioi": "ioi", "zoo:needle": "needle", "zoo:induction": "induction", "zoo:shapes-vit": "shapes"}
SENTENCES = (
    ("When", "John", "Mary", "shops", "the bag"),
    ("When", "Tom", "James", "park", "the ball"),
    ("When", "Dan", "Sid", "shops", "an apple"),
    ("After", "Martin", "Amy", "park", "a drink"),
)


def main() -> None:
    options = _options()
    names = [options.model] if options.model else [name for name in ZOO if _shipped(name)]
    found = {
        name: study(name, rows=options.rows or (2 if name == "zoo:needle" else 8), steps=options.steps)
        for name in names
    }
    out = Path("runs/relp_vs_atp")
    out.mkdir(parents=True, exist_ok=True)
    (out / "table.json").write_text(json.dumps(found, indent=1))
    for name, rows in found.items():
        show(name, rows)
    print(f"wrote {out / 'table.json'}")
    print(json.dumps({"experiment": "relp_vs_atp", "models": {n: brief(rows) for n, rows in found.items()}}))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="zoo:NAME, or a directory with a checkpoint")
    parser.add_argument("--rows", type=int, help="prompts of a zoo task (8, or 2 of the long ones of zoo:needle)")
    parser.add_argument("--steps", type=int, default=10, help="steps of ig")
    return parser.parse_args()


def _shipped(name: str) -> bool:
    return (Path(interp.__file__).parent / "zoo" / name.removeprefix("zoo:") / "model.safetensors").exists()


def study(name: str, *, rows: int, steps: int) -> list[dict[str, Any]]:
    """One row per direction, place and method."""
    m = interp.load(name)
    task = _task(m, name, rows)
    print(f"{name}: {len(task)} prompts of {task.clean.length} tokens", flush=True)
    sides = {"denoise": (task.corrupt, task.clean), "noise": (task.clean, task.corrupt)}
    made = []
    for direction, (base, source) in sides.items():
        for place, sites in PLACES.items():
            asked = {"base": base, "source": source, "metric": task.metric, "sites": sites, "positions": "each"}
            try:
                exact = interp.patch(m, **asked)
            except SiteError:  # a model without MLPs
                continue
            for method in METHODS:
                found = _compared(m, asked, exact, method, steps)
                made += [{"direction": direction, "place": place, "method": method, **found}]
    return made


def _compared(
    m: interp.Model, asked: dict[str, Any], exact: interp.patching.Effects, method: str, steps: int
) -> dict[str, float | None]:
    try:
        found = interp.attribute(m, method=method, steps=steps, verify=0, **asked)
    except interp.InterpError as reason:
        print(f"  {method} at {asked['sites']}: {reason}")
        return {"pearson": None}
    truth = (exact.values.abs() if method == "atp*" else exact.values).mean(1)
    changed = (exact.values != 0).any(1)
    return agreement(found.mean, truth, changed)


def agreement(estimate: Tensor, exact: Tensor, changed: Tensor) -> dict[str, float | None]:
    """Correlations over changed cells, without the largest, and over all."""
    x, y = estimate[changed].double(), exact[changed].double()
    ones = torch.ones(len(x), dtype=torch.float64)
    small = y.abs() < y.abs().max()
    k = min(10, len(x))
    top = set(x.abs().topk(k).indices.tolist()) & set(y.abs().topk(k).indices.tolist())
    return {
        "pearson": pearson(x, y, ones),
        "spearman": pearson(ranks(x, ones), ranks(y, ones), ones),
        "without largest": pearson(x[small], y[small], ones[small]),
        "top 10": len(top) / k,
        "all": pearson(estimate.double(), exact.double(), torch.ones(len(exact), dtype=torch.float64)),
    }


def _task(m: interp.Model, name: str, rows: int) -> Task:
    if name not in ZOO:
        return demo(m)
    task = getattr(interp.tasks, ZOO[name])(m, n=8 * rows)
    if task.clean.ids is None:
        return task.take(range(rows))
    lengths = task.clean.valid.sum(1).tolist()
    common = Counter(lengths).most_common(1)[0][0]
    return task.take([i for i, length in enumerate(lengths) if length == common][:rows]).on(m)


def demo(m: interp.Model) -> Task:
    """The eight prompts: each sentence with either name as its second subject, corrupted into the other."""
    rows = []
    for start, first, second, place, thing in SENTENCES:
        for s, io in ((first, second), (second, first)):
            clean, corrupt = (_ids(m, f"{start} {first} and {second} went to the {place}, {who} gave {thing} to")
                              for who in (s, io))  # fmt: skip
            rows.append(Row(clean, corrupt, (f" {io}",), (f" {s}",)))
    return Task("relp demo", tuple(rows)).on(m)


def _ids(m: interp.Model, text: str) -> tuple[int, ...]:
    ids = m.tokenizer(text, add_special_tokens=False)["input_ids"]
    start = m.tokenizer.bos_token_id
    return tuple(ids if start is None else [start, *ids])


def show(name: str, rows: list[dict[str, Any]]) -> None:
    """The table of one model."""
    columns = ("pearson", "spearman", "without largest", "top 10", "all")
    print(f"\n{name}\n{'':28}" + "".join(f"{c:>17}" for c in columns))
    for row in rows:
        numbers = "".join(f"{'' if row.get(c) is None else f'{row[c]:.3f}':>17}" for c in columns)
        print(f"{row['direction']:9}{row['place']:7}{row['method']:12}{numbers}")


def brief(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Pearson over changed cells by direction, place and method."""
    made: dict[str, Any] = {}
    for row in rows:
        value = row["pearson"]
        at = made.setdefault(row["direction"], {}).setdefault(row["place"], {})
        at[row["method"]] = None if value is None else round(value, 3)
    return made


if __name__ == "__main__":
    main()
