"""Which texts need the heads that copy: a made-up corpus ranked by AttentionInfluence, beside random heads.

    python experiments/influence.py

Four kinds of text for zoo:needle, `--n` of each and all about as long: notes that are asked for (`asked`), a passage
said twice (`copied`), notes that nobody asks for (`noted`), filler. Heads are chosen as the paper does it (copies from
anywhere, the top share of `--share`). AUROC is how surely a text of the first two kinds scores above one of the others,
by these heads and by random ones. Writes runs/influence (the corpus, its ranking, the scores) and ends with one JSON
line. Cost: under a minute of one core.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

import interp
from interp.prompts.needles import KEYS, VALUES, filler, note
from interp.results.texts import Influence

LENGTH = 120
NEED = ("asked", "copied")


def main() -> None:
    options = _options()
    m = interp.load("zoo:needle")
    task = interp.tasks.needle(m, lengths=(128, 256), n=1, whole=True)
    scores = interp.retrieval_heads(m, task, anywhere=True)
    heads = scores.top(max(1, round(options.share * len(scores.sites))))["site"].tolist()
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    rows = corpus(options.n)
    (out / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = interp.long.influence(m, out / "corpus.jsonl", heads=heads, random=options.random, out=out)
    found.ranking(out / "ranking.jsonl")
    frame = found.to_frame().assign(kind=[row["kind"] for row in rows])
    print(found, frame.groupby("kind")[["base", "estimate", "random"]].mean().round(3).to_string(), sep="\n")
    print(f"wrote {out}")
    print(json.dumps({"experiment": "influence", "heads": heads, "texts": len(rows), **summary(found, frame)}))


def corpus(n: int) -> list[dict[str, str]]:
    """Texts of every kind by turns."""
    rng = random.Random(0)
    kinds = {"asked": asked, "copied": copied, "noted": noted, "filler": lambda rng: filler(rng, LENGTH)}
    return [{"kind": kind, "text": " ".join(make(rng))} for _ in range(n) for kind, make in kinds.items()]


def noted(rng: random.Random) -> list[str]:
    """Notes between filler."""
    words: list[str] = []
    for key in rng.sample(KEYS, 6):
        words += [*filler(rng, 14), *note(key, rng.sample(VALUES, 2))]
    return words


def asked(rng: random.Random) -> list[str]:
    """Notes between filler, each asked for at the end."""
    words: list[str] = []
    known = {key: rng.sample(VALUES, 2) for key in rng.sample(KEYS, 6)}
    for key, values in known.items():
        words += [*filler(rng, 8), *note(key, values)]
    for key in rng.sample(list(known), len(known)):
        words += ["question", ":", key, *known[key], "."]
    return words


def copied(rng: random.Random) -> list[str]:
    """A passage, filler, and the passage again."""
    passage = rng.sample((*KEYS, *VALUES), 40)
    return [*passage, ".", *filler(rng, LENGTH - 82), *passage, "."]


def summary(found: Influence, frame: Any) -> dict[str, float]:
    """AUROC by the heads and by random ones, and how alike the two rankings are."""
    need = frame["kind"].isin(NEED)
    return {
        "auroc": auroc(frame["estimate"][need], frame["estimate"][~need]),
        "auroc_random": auroc(frame["random"][need], frame["random"][~need]),
        "agreement": round(found.agreement, 3),
    }


def auroc(above: Any, below: Any) -> float:
    """How often one of `above` is larger than one of `below`, ties as half."""
    wins = [(a > b) + 0.5 * (a == b) for a in above for b in below]
    return round(float(sum(wins) / len(wins)), 4)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=12, help="texts of each kind")
    parser.add_argument("--share", type=float, default=0.125, help="share of heads that is masked (the paper: 0.05)")
    parser.add_argument("--random", type=int, default=5, help="random sets of heads")
    parser.add_argument("--out", default="runs/influence")
    return parser.parse_args()


if __name__ == "__main__":
    main()
