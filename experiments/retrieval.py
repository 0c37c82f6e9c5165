"""Retrieval heads: which heads copy the answer out of a long text, and what is left of the answers without them.

    python experiments/retrieval.py --model zoo:needle

Heads are scored on `--n` needles for each length and depth (teacher-forced, event mode), then masked on one needle each
of the held-out split: the first 1, 2, 3, 4, 6 and 8 of them, by uniform attention as the authors' code does it and by
zero, in the answer's rows alone beside `--draws` draws of random heads matched on layer and output norm, and everywhere
beside a tenth as many, since there every draw is a whole forward pass.
Wanted: at most 15% of heads at 0.1 or more; with those masked recall below 0.3, with random heads above 0.85; a miss is
reported as one. Writes runs/retrieval (scores, curves over the threshold and over the number masked, the published
JSON, figures) and ends with one JSON line about the authors' masking. Cost: about two minutes of one core.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import interp
from interp.long.masking import Masking
from interp.results.retrieval import CONVENTION, RetrievalHeads

COUNTS = (1, 2, 3, 4, 6, 8)
WAYS = (("uniform", "decode"), ("zero", "decode"), ("uniform", "both"), ("zero", "both"))
MOST_HEADS, MASKED, RANDOM = 0.15, 0.3, 0.85


def main() -> None:
    options = _options()
    m = interp.load(options.model)
    scores, masked = studied(m, options)
    out = Path(options.out)
    _write(out, scores, masked)
    made = summary(scores, masked["uniform-decode"])
    (out / "summary.json").write_text(json.dumps(made, indent=1))
    print(f"wrote {out}")
    print(json.dumps({"experiment": "retrieval", "model": options.model, **made}))


def studied(m: interp.Model, options: argparse.Namespace) -> tuple[RetrievalHeads, dict[str, Masking]]:
    """Scores of all heads, and what masking does, by way of masking."""
    task = interp.tasks.needle(m, lengths=options.lengths, n=options.n, whole=True)
    scores = interp.retrieval_heads(m, task)
    print(scores, scores.top(8).to_string(index=False), sep="\n", flush=True)
    ranked = scores.top(max(_counts(scores)))["site"].tolist()
    masked = {}
    held = interp.tasks.needle(m, lengths=options.lengths, n=1, whole=True, split="heldout")
    for how, phase in WAYS:
        draws = options.draws if phase == "decode" else options.draws // 10
        found = interp.long.mask_heads(m, held, heads=ranked, counts=_counts(scores), how=how, phase=phase, draws=draws)
        masked[f"{how}-{phase}"] = found
        print(f"{how}, {phase}: {found}", found.to_frame().to_string(index=False), sep="\n", flush=True)
    return scores, masked


def _named(scores: RetrievalHeads) -> int:
    """How many heads score as much as the convention asks."""
    return int((scores.mean >= CONVENTION).sum())


def _counts(scores: RetrievalHeads) -> list[int]:
    half = len(scores.sites) // 2
    return sorted({*(n for n in COUNTS if n <= half), min(half, max(1, _named(scores)))})


def summary(scores: RetrievalHeads, masked: Masking) -> dict[str, Any]:
    """What was wanted, and what came."""
    named = min(max(1, _named(scores)), masked.counts[-1])
    row = masked.to_frame().set_index("masked").loc[named]
    share = _named(scores) / len(scores.sites)
    random = masked.controls[masked.counts.index(named)]
    return {
        "heads": _named(scores), "share": round(share, 4), "needles": int(scores.kept.sum()),
        "recall": round(float(masked.recall[0].mean()), 4), "masked_recall": round(float(row["estimate"]), 4),
        "random_recall": round(float(row["random"]), 4), "random_low": round(float(row["random_low"]), 4),
        "random_min": round(float(random.min()), 4), "p": round(float(row["p"]), 4),
        "draws": masked.meta["draws"][masked.counts.index(named)],
        "met": bool(share <= MOST_HEADS and row["estimate"] < MASKED and row["random"] > RANDOM),
    }  # fmt: skip


def _write(out: Path, scores: RetrievalHeads, masked: dict[str, Masking]) -> None:
    scores.save(out / "scores")
    scores.save_json(out / "head_score.json")
    scores.to_frame().to_csv(out / "heads.csv", index=False)
    scores.curve().to_csv(out / "thresholds.csv", index=False)
    _figure(scores.plot(), out / "heads.html")
    for name, found in masked.items():
        found.save(out / name)
        found.to_frame().to_csv(out / f"{name}.csv", index=False)
        _figure(found.plot(), out / f"{name}.html")


def _figure(figure: Any, path: Path) -> None:
    figure.write_html(path, include_plotlyjs="directory", config={"displaylogo": False})


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="zoo:needle")
    parser.add_argument("--n", type=int, default=3, help="needles for each length and depth")
    parser.add_argument("--lengths", type=int, nargs="+", default=[128, 256, 512])
    parser.add_argument("--draws", type=int, default=100)
    parser.add_argument("--out", default="runs/retrieval")
    return parser.parse_args()


if __name__ == "__main__":
    main()
