"""Who moves the name: indirect object identification taken apart with patching, paths, direct effects and lenses.

    python experiments/ioi.py [--model zoo:ioi] [--n 48] [--out runs/ioi]

The steps of Wang et al. 2022 (arXiv 2211.00593) on any model that has the names as single tokens. Source and base are
the two sides of the flip corruption, denoising: what makes the corrupt prompt give the clean answer. Heads are chosen
on one half of the task and judged on the other (new names and templates). Tables go to the report directory.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

import interp
from interp.patching.lenses.said import Lens
from interp.results.effects import Effects


def main() -> None:
    given = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    given.add_argument("--model", default="zoo:ioi")
    given.add_argument("--n", type=int, default=48)
    given.add_argument("--out", type=Path, default=Path("runs/ioi"))
    args = given.parse_args()
    torch.set_num_threads(1)
    m = interp.load(args.model)
    task = interp.tasks.ioi(m, n=args.n).filter()
    how: dict[str, Any] = {"base": task.corrupt, "source": task.clean, "metric": task.metric}

    exact = interp.patch(m, sites="L*.H*.z", **how)
    direct = interp.patching.direct_effect(m, task.clean, metric=task.metric)
    heads = direct.only("result")
    paths = interp.path_patch(m, receivers="logits", **how)
    show("total effect of heads", exact)
    show("direct effect", heads)
    show("paths into the logits", paths)

    movers = movers_of(paths)
    strongest = movers[0]
    into = {
        part: interp.path_patch(m, receivers=receivers(m, movers, part), **how) for part in ("q_in", "k_in", "v_in")
    }
    frozen = interp.path_patch(m, receivers=receivers(m, movers, "q_in"), freeze="all", **how)
    for part, effects in into.items():
        show(f"paths into {part} of {', '.join(movers)}", effects)

    seen = interp.lens(m, task.clean, sites=f"{strongest}.result", answers=task.answer_ids, norm="frozen")
    layers = interp.lens(m, task.clean, answers=task.answer_ids)
    blocked = {
        name: interp.patching.knockout(m, task.clean, metric=task.metric, edges=[(task.positions[name], "last")])
        for name in ("IO", "S1", "S2")
    }
    ranks = [rank for rank in (0, 1, 2, 3, 4, 6, 8, 12, 16) if rank <= width(m, strongest)]
    small = interp.directions.subspace(m, task.clean, metric=task.metric, sites=f"{strongest}.q", ranks=ranks, draws=10)
    print(f"\nrank of {strongest}.q\n{small.to_frame().round(3).to_string(index=False)}")

    others = task.heldout.filter()
    again = interp.patching.direct_effect(m, others.clean, metric=others.metric).only("result")
    save(args.out, {"heads": exact, "direct": direct, "paths": paths, "paths-frozen": frozen, "heldout": again, **into}
         | {f"blocked-{name}": effects for name, effects in blocked.items()}, layers)  # fmt: skip
    small.to_frame().to_csv(args.out / "rank.csv", index=False)

    chosen = [heads.sites.index(f"{mover}.result") for mover in movers]
    found = {
        "experiment": "ioi",
        "model": args.model,
        "rows": len(task),
        "logit_difference": round(float(direct.base.mean()), 3),
        "movers": movers,
        "direct_share_of_movers": share(heads, chosen),
        "direct_share_of_movers_heldout": share(again, chosen),
        "spearman_direct_and_paths": spearman(heads.mean, aligned(paths, heads)),
        "strongest_says_the_answer": round(float((seen.rank == 0).double().mean()), 3),
        "layer_where_the_answer_is_first": first_layer(layers),
        "largest_path_into": {part: largest(effects) for part, effects in into.items()},
        "spearman_freeze_heads_and_all": spearman(into["q_in"].mean, frozen.mean),
        "blocked": {name: [round(float(v), 3) for v in effects.mean] for name, effects in blocked.items()},
        "rank_for_nine_tenths": enough(small),
        "out": str(args.out),
    }
    print(json.dumps(found))


def show(title: str, effects: Effects) -> None:
    """The largest ones."""
    print(f"\n{title}\n{effects.top(5)[['site', 'estimate', 'low', 'high']].round(3).to_string(index=False)}")


def movers_of(paths: Effects) -> list[str]:
    """The heads whose path into the logits is at least a third of the largest, at most four."""
    frame = paths.top(4, by="high")
    return [site.removesuffix(".result") for site in frame[frame.estimate > frame.estimate.max() / 3].site]


def receivers(m: interp.Model, heads: list[str], part: str) -> list[str]:
    """The q, k or v inputs of heads; keys and values belong to the kv head a head reads."""
    if part == "q_in":
        return [f"{head}.q_in" for head in heads]
    sites = [m.anatomy.one(f"{head}.{part}") for head in heads]
    return list(dict.fromkeys(f"L{s.layer}.K{m.anatomy.layer(s).heads_of(s)[0]}.{part}" for s in sites))


def width(m: interp.Model, head: str) -> int:
    return m.anatomy.layer(m.anatomy.one(f"{head}.q")).d_head


def share(heads: Effects, chosen: list[int]) -> float:
    """Of the sum over all heads."""
    return round(float(heads.mean[chosen].sum() / heads.mean.sum()), 3)


def aligned(effects: Effects, like: Effects) -> torch.Tensor:
    """Means in the other's order."""
    by_site = dict(zip(effects.sites, effects.mean, strict=True))
    return torch.stack([by_site[site] for site in like.sites])


def spearman(a: torch.Tensor, b: torch.Tensor) -> float:
    """Correlation of ranks."""
    ranks = torch.stack([a, b]).argsort(-1).argsort(-1).double()
    return round(float(torch.corrcoef(ranks)[0, 1]), 3)


def largest(effects: Effects) -> dict[str, float]:
    """The sender with the largest effect in size."""
    row = effects.top(1)
    return {str(row.site.item()): round(float(row.estimate.item()), 3)}


def first_layer(layers: Lens) -> str | None:
    """The first place where the answer leads on more than half of the rows."""
    leads = (layers.rank == 0).double().mean((1, 2))
    return next((site for site, value in zip(layers.sites, leads.tolist(), strict=True) if value > 0.5), None)


def enough(small: Any) -> int | None:
    """The smallest rank that keeps nine tenths of the metric."""
    frame = small.to_frame()
    kept = frame[frame.metric >= 0.9 * frame.base]
    return None if kept.empty else int(kept["rank"].min())


def save(out: Path, tables: dict[str, Effects], layers: Lens) -> None:
    """One directory per table, and the lens."""
    for name, effects in tables.items():
        effects.save(out / name)
        effects.to_frame().to_csv(out / f"{name}.csv", index=False)
    layers.save(out / "lens")


if __name__ == "__main__":
    main()
