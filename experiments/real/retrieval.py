"""Retrieval heads of a real model in texts of 512 to 2,048 tokens, and what is left of its answers without them.

    python experiments/real/retrieval.py [--model gemma3] [--quick]

A sentence with four words to remember is hidden in Python's documentation at two depths and three lengths, and asked
for at the end; heads are scored as by Wu et al. (arXiv 2404.15574), teacher-forced, in event mode, then masked
(uniform attention in the answer's rows, as the authors' code does) on other sentences, beside random heads of like
layers and norms. Cost: one prefill of each needle, 18 in all, and some hundred short decodes.

Predicted for SmolLM2-135M, before any run:
 1. The model says most of the answer (recall over 0.8) at 512 and 1,024 tokens, less at 2,048.
 2. 3% to 12% of the heads score 0.1 or more; the first scores 0.5 or more.
 3. At least half of the first 8 are among the tenth of heads with the largest induction values.
 4. Length does not choose other heads: of the first 8 at 512 tokens 6 are among the first 8 at 2,048.
 5. With the first 8 masked recall falls below half of what it was; with 8 random ones it keeps nine tenths.

Measured (SmolLM2-135M):
 1. No: recall 0.69, 0.75 and 0.69. The first token it would say is another ("The"), the rest is copied at any length.
 2. Yes: 15 heads, 5.6%; the first, L17.H3 and L17.H4, 0.75.
 3. Yes, and more: all of the first 8, and of the first 5 the three first induction heads.
 4. Yes, all 8.
 5. Yes: with the first 4 masked 0.50 of 0.71 is left, with 8 nothing; without 8 random ones nothing is lost (0.72),
    though one draw of 16 random heads left 0.29.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from _real import finish, largest, load, options, paragraphs

import interp
from interp.prompts.haystack import Needle
from interp.reporting.drawing.figures import bars, curves
from interp.results.retrieval import CONVENTION

COUNTS = (1, 2, 4, 8, 16)
DEPTHS = (0.2, 0.8)
SAID = (
    ("the lighthouse keeper", "amber violin castle garden"),
    ("the night train", "silver forest candle bridge"),
    ("the old library", "copper river window orange"),
    ("the mountain school", "yellow engine pepper island"),
)


def main() -> None:
    chosen = options(__doc__)
    m = load(chosen)
    lengths, count = ((512,), 1) if chosen.quick else ((512, 1024, 2048), 2)
    found = interp.retrieval_heads(m, hidden(m, SAID[:2], lengths, count), impl="auto")
    scores = dict(zip(found.sites, found.mean.tolist(), strict=True))
    first = list(largest(scores, max(COUNTS), size=False))
    named = sum(score >= CONVENTION for score in scores.values())
    masked = interp.long.mask_heads(
        m, hidden(m, SAID[2:], lengths, 1), heads=first, counts=COUNTS, draws=3 if chosen.quick else 10
    )
    table = masked.to_frame()
    said = table[table["masked"] > 0]
    made = {
        "needles": len(found.kept), "kept": int(found.kept.sum()), "lengths": lengths,
        "recall": by_length(found, found.recall.tolist()),
        "heads": named, "share": named / len(scores), "first": largest(scores, 8, size=False),
        "among_induction": among_induction(m, first[:8], 3 if chosen.quick else 8),
        "same_at_both_ends": None if len(lengths) < 2 else same(found, lengths),
        "whole": float(table["estimate"].iloc[0]), "needles_masked": int(masked.recall.shape[1]),
        "counts": said["masked"].tolist(), "masked": said["estimate"].tolist(), "random": said["random"].tolist(),
        "random_low": masked.controls.amin(1).tolist(), "random_high": masked.controls.amax(1).tolist(),
        "p": said["p"].tolist(), "draws": masked.controls.shape[1],
    }  # fmt: skip
    table = found.to_frame().set_index("site").loc[first[:12]].reset_index()
    finish(chosen, "retrieval", made, {
        "retrieval": bars(table.to_dict("records"), "Retrieval: the twelve heads with the highest scores",
                          unit="share of the answer copied"),
        "retrieval-masked": curves(
            [{"name": "first heads", "x": made["counts"], "y": made["masked"]},
             {"name": "random, like layer and norm", "x": made["counts"], "y": made["random"],
              "low": made["random_low"], "high": made["random_high"]}],
            "Recall of a hidden sentence with heads masked", x_title="masked heads", y_title="share of the answer",
            levels=[("no head masked", made["whole"])]),
    })  # fmt: skip


def hidden(m: interp.Model, said: Any, lengths: tuple[int, ...], count: int) -> interp.Task:
    """Sentences hidden in prose, at every length and depth."""
    text = Path("runs") / "real" / "haystack.txt"
    text.parent.mkdir(parents=True, exist_ok=True)
    text.write_text("\n".join(paragraphs()), encoding="utf-8")
    needles = [
        Needle(f"The secret words of {who} are {answer}.", f"What are the secret words of {who}?", answer)
        for who, answer in said
    ]
    return interp.tasks.needle(m, n=count, lengths=lengths, depths=DEPTHS, haystack=text, needles=needles, whole=True)


def by_length(found: Any, values: list[float]) -> dict[int, float]:
    rows: dict[int, list[float]] = {}
    for cell, value in zip(found.cells, values, strict=True):
        rows.setdefault(cell["length"], []).append(value)
    return {length: sum(some) / len(some) for length, some in rows.items()}


def same(found: Any, lengths: tuple[int, ...]) -> int:
    """How many of the first 8 at the shortest length are among the first 8 at the longest."""
    sets = []
    for length in (lengths[0], lengths[-1]):
        rows = [n for n, cell in enumerate(found.cells) if cell["length"] == length and bool(found.kept[n])]
        means = found.scores[:, rows].mean(1).tolist()
        sets.append(set(largest(dict(zip(found.sites, means, strict=True)), 8, size=False)))
    return len(sets[0] & sets[1])


def among_induction(m: interp.Model, heads: list[str], n: int) -> int:
    """How many are among the tenth of heads with the largest induction values on random tokens."""
    roles = interp.head_roles(m, kinds=["induction"], n=n)
    values = dict(zip(roles.sites, roles.of("induction").tolist(), strict=True))
    return len(set(heads) & set(largest(values, len(values) // 10, size=False)))


if __name__ == "__main__":
    main()
