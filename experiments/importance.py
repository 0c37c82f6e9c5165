"""Which heads matter for indirect object identification, and whether measures of importance say the same.

    python experiments/importance.py --model zoo:ioi

Every head by removal (zero, mean, resample), gradient (Michel et al.), attribution (relp, atp), direct effect, output
norm, entropy, learned gates and Fisher, on `--n` prompts; how far each pair of measures ranks heads alike (Spearman and
the first `--k`, with bootstrap intervals over templates and prompts); and how far each measure's order is the same on
held-out names and templates, gates left out. Attention against attribution of the same keys
(`interp.attribution.agree`) stands beside it. Writes runs/importance (values, tables as CSV) and ends with one JSON
line. Cost: about a minute of one core.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

import interp
from interp.results import intervals as bootstrap

BY = ("ablation", "gradient", "gradient-l2", "relp", "atp", "direct_effect", "norm", "entropy", "fisher")
EXACT = "resample"


def main() -> None:
    options = _options()
    m = interp.load(options.model)
    task = interp.tasks.ioi(m, n=options.n)
    how = {"draws": options.draws, "verify": 0}
    gates = {"steps": options.steps}
    found = interp.importance(m, task, by=[*BY, "gates"], gates=gates, **how)
    again = interp.importance(m, task.heldout, by=BY, **how)
    looks = interp.attribution.agree(m, task.clean, metric=task.metric)
    agreement = found.agreement(k=options.k)
    print(agreement.round(3).to_string(index=False))
    carried = carry_over(found, again)
    print(looks, looks.auc().round(3).to_string(index=False), sep="\n")
    out = Path(options.out)
    _write(out, found, agreement, looks, options.k)
    print(f"wrote {out}")
    made = {"model": options.model, "n": options.n, "first": found.top(1, method=EXACT)["site"].item(),
            f"with_{EXACT}": beside(agreement), "held_out": carried, "attention": half(looks)}  # fmt: skip
    print(json.dumps({"experiment": "importance", **_short(made)}))


def carry_over(found: interp.heads.Importance, again: interp.heads.Importance) -> dict[str, float]:
    """Spearman of each measure's order with its own on other prompts."""
    made = {}
    for name in again.methods:
        x, y = (torch.tensor(list(one.scores(name).values())) for one in (found, again))
        made[name] = float(bootstrap.spearman(x, y))
    return made


def beside(agreement: Any) -> dict[str, list[float]]:
    """Of each measure against the exact one: Spearman with its interval, and the overlap of the first."""
    rows = agreement[(agreement["a"] == EXACT) | (agreement["b"] == EXACT)]
    return {
        (row.b if row.a == EXACT else row.a): [row.spearman, row.low, row.high, row.overlap]
        for row in rows.itertuples()
    }


def half(looks: Any) -> dict[str, float]:
    """How much of the attribution all heads' mean attention has, and of its deletion curve."""
    whole = looks.to_frame("all").set_index("method")["estimate"]
    area = looks.auc().set_index("order")["below_random"]
    return {
        "pearson": float(whole["input pearson"]),
        "spearman": float(whole["input spearman"]),
        "deletion": float(area["attention"] / area["attribution"]),
    }


def _write(out: Path, found: interp.heads.Importance, agreement: Any, looks: Any, k: int) -> None:
    out.mkdir(parents=True, exist_ok=True)
    found.save(out / "importance")
    looks.save(out / "attention")
    agreement.to_csv(out / "agreement.csv", index=False)
    found.wide().to_csv(out / "heads.csv", index=False)
    found.ranks(k=k).to_csv(out / "ranks.csv", index=False)
    looks.deletion().to_csv(out / "deletion.csv", index=False)


def _short(value: Any) -> Any:
    """Three decimals."""
    if isinstance(value, float):
        return round(value, 3)
    if isinstance(value, list):
        return [_short(one) for one in value]
    return {key: _short(one) for key, one in value.items()} if isinstance(value, dict) else value


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="zoo:ioi")
    parser.add_argument("--n", type=int, default=64, help="prompts")
    parser.add_argument("--k", type=int, default=8, help="heads that count as first")
    parser.add_argument("--draws", type=int, default=5, help="how often heads are resampled")
    parser.add_argument("--steps", type=int, default=200, help="steps of training the gates")
    parser.add_argument("--out", default="runs/importance")
    return parser.parse_args()


if __name__ == "__main__":
    main()
