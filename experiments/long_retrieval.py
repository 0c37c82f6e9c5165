"""Needles in texts longer than zoo:needle was trained for: cut, whole, by kept sentences, by chunks each head chooses.

    python experiments/long_retrieval.py

For each length and depth `--n` needles; a needle counts if every token of its answer is said (teacher-forced).
`whole` reads everything, `truncated` the last `--window` tokens before the question, `infini` is InfiniRetri by the
last layer as the paper has it, `infini_heads` by the retrieval heads found on short texts, `long_heads` LongHeads with
chunks that add up to the same window. Beside it: how often the chunk of the needle is among those a retrieval head
chose. Writes runs/long_retrieval/table.csv and ends with one JSON line. Cost: some minutes of one core.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import interp
from interp.hooks.head_names import by_layer, head_place, layer_name, spelled_together
from interp.tasks.task import Task

CHUNK = 64


def main() -> None:
    options = _options()
    m = interp.load("zoo:needle")
    short = interp.tasks.needle(m, lengths=(128, 256), n=1, whole=True)
    heads = interp.retrieval_heads(m, short).top(options.heads)["site"].tolist()
    print("retrieval heads on short texts:", ", ".join(heads), flush=True)
    rows = [row for length in options.lengths for row in measured(m, length, heads, options)]
    import pandas

    table = pandas.DataFrame(rows)
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    table.to_csv(out / "table.csv", index=False)
    summary = table.groupby("length").mean(numeric_only=True).drop(columns="depth").round(3)
    print(summary.to_string(), f"wrote {out}", sep="\n")
    found = {str(length): one for length, one in summary.to_dict("index").items()}
    print(json.dumps({"experiment": "long_retrieval", "window": options.window, "needles": len(rows), "right": found}))


def measured(m: interp.Model, length: int, heads: list[str], options: argparse.Namespace) -> list[dict[str, Any]]:
    """One row a needle: which ways find its answer."""
    task = interp.tasks.needle(m, lengths=(length,), n=options.n, whole=True, split="heldout")
    rows = []
    for n in range(len(task)):
        one = task.take([n])
        row: dict[str, Any] = {"length": length, "depth": one.meta[0]["depth"]}
        for name, way in WAYS.items():
            row |= way(m, one, heads, options) if name == "long_heads" else {name: way(m, one, heads, options)}
        print(row, flush=True)
        rows.append(row)
    return rows


def whole(m: interp.Model, one: Task, heads: list[str], options: argparse.Namespace) -> float:
    """Everything, at positions the model has never seen."""
    return right(m, ids_of(one)[:, :-2], one)


def truncated(m: interp.Model, one: Task, heads: list[str], options: argparse.Namespace) -> float:
    """The first token and the last ones."""
    ids = ids_of(one)[:, :-2]
    return right(m, torch.cat([ids[:, :1], ids[:, 1:][:, -options.window :]], dim=1), one)


def infini(m: interp.Model, one: Task, heads: list[str], options: argparse.Namespace, by: str | None = None) -> float:
    """Sentences kept window by window."""
    text, question = str(one.rows[0].clean).rsplit(" question ", 1)
    half = options.window // 2
    found = interp.long.infini_retrieve(m, text, f"question {question}", window=half, keep=options.keep, heads=by)
    return right(m, found.ids, one)


def infini_heads(m: interp.Model, one: Task, heads: list[str], options: argparse.Namespace) -> float:
    """The same by retrieval heads of the layer that has most of them."""
    layers = by_layer(heads)
    layer = max(sorted(layers), key=lambda name: len(layers[name]))
    return infini(m, one, heads, options, by=spelled_together(layer, layers[layer]))


def long_heads(m: interp.Model, one: Task, heads: list[str], options: argparse.Namespace) -> dict[str, float]:
    """Chunks each head chooses, and how often the retrieval heads choose the needle's in the answer's rows."""
    place = one.positions["needle"].rows[0]
    assert place is not None
    keep = options.window // CHUNK
    with interp.long.long_heads(m, chunk=CHUNK, keep=keep) as found:
        said = right(m, ids_of(one)[:, :-2], one)
    if not found.chosen:
        return {"long_heads": said, "needle_chunk": 1.0}
    seen = [found.share(layer_name(h), place[0], slice(-2, None))[head_place(h).head] for h in heads]
    return {"long_heads": said, "needle_chunk": float(torch.stack(seen).mean())}


WAYS: dict[str, Callable[..., Any]] = {
    "whole": whole, "truncated": truncated, "infini": infini, "infini_heads": infini_heads, "long_heads": long_heads,
}  # fmt: skip


def ids_of(one: Task) -> Tensor:
    """The ids of prompt and answer, which is two tokens."""
    found: Tensor = one.clean.kwargs["input_ids"]
    return found


def right(m: interp.Model, prompt: Tensor, one: Task) -> float:
    """Whether the answer is said after this prompt."""
    answer = torch.tensor(one.answer_ids)
    with torch.no_grad():
        logits = m.module(torch.cat([prompt, answer[:, :-1]], dim=1), use_cache=False, logits_to_keep=2).logits
    return float(torch.equal(logits.argmax(-1), answer))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[900, 2000, 4000])
    parser.add_argument("--n", type=int, default=2, help="needles for each length and depth")
    parser.add_argument("--window", type=int, default=900, help="tokens read at once")
    parser.add_argument("--keep", type=int, default=100, help="tokens InfiniRetri keeps sentences for")
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--out", default="runs/long_retrieval")
    return parser.parse_args()


if __name__ == "__main__":
    main()
