"""Which heads of a real model say who gets the drink, what they read, and whether it holds for other sentences.

    python experiments/real/ioi.py [--model gemma3] [--quick]

Indirect object identification (Wang et al. 2022, arXiv 2211.00593) with the flip corruption, on prompts that are
answered right. Every head's z is patched, both ways, on one set of names and templates and again on the held-out ones.
The first heads are read: where the last token looks with them, what they write to the logits of the indirect object, of
the subject and of other names, and, of the first two, what reaches their q, k and v. Groups of the first heads are put
into the corrupt held-out prompts together, beside groups of random heads of like layers and norms. Cost: about 250
forward passes of 16 prompts.

Predicted for SmolLM2-135M, knowing that L23.H3 alone is about half of the gap, that L20.H0 is next, and that L23.H3
looks at the repeated name (nothing else had been looked at):
 1. Three heads or fewer have 10% of the gap each; denoising and noising rank heads alike (Spearman over 0.8).
 2. The first two heads are the same on held-out names and templates, and all heads rank alike (Spearman over 0.7).
 3. L23.H3 looks at the second mention of the subject more than at the indirect object, and lowers the subject's logit
    against other names: it is no name mover but a negative copier. Some later or earlier head is a real name mover.
 4. What changes it comes by its values (which name stands where it looks), not by its queries.
 5. The first 8 heads together restore at least 80% of the held-out gap, 8 matched random heads under 10%.

Measured (SmolLM2-135M, 16 prompts):
 1. No: seven heads have a tenth or more, L20.H0 and L23.H3 0.42 each; the ranks of the two ways agree at 0.46 only.
 2. The first two are the same in the other order (0.65 and 0.34); all heads do not rank alike, 0.26. The gap is 4.3
    there, of 9.1, and 12 of 16 are answered right, of 14.
 3. Yes: L23.H3 looks at the second mention with 0.59, at the indirect object with 0.04, and writes -2.0 to the
    subject's logit, -0.2 to the indirect object's. The name mover is L29.H1 in the last layer (+1.6 and +0.5), with
    heads against it in layers 24 and 29.
 4. Yes: 0.46 of the gap by the values of L20.H0 and 0.38 by those of L23.H3, nothing by queries and keys. L23.H3 reads
    the name as it stands (embedding and first MLP), L20.H0 what L17.H4 left there, an induction head.
 5. Yes, and more than that: two heads restore all of it (1.15), eight too much (1.80), eight random ones -0.06.
"""

from __future__ import annotations

from typing import Any

import torch
from _real import by_head, finish, largest, load, map_rows, norms, options, random_sets, spearman

import interp
from interp.hooks.head_names import head_place
from interp.prompts.names import NAMES
from interp.reporting.drawing.figures import bars, curves, head_map

COUNTS = (1, 2, 4, 8, 16, 32)
NEAR = 24
"""Heads that are tried as senders: those with the largest effects among the heads before the receiver."""


def main() -> None:
    chosen = options(__doc__)
    m, n, draws = load(chosen), 8 if chosen.quick else 16, 5 if chosen.quick else 10
    asked = interp.tasks.ioi(m, n=n)
    task, others = asked.filter(), asked.heldout.filter()
    found = {name: swept(m, one, both=one is task) for name, one in (("train", task), ("heldout", others))}
    train, heldout = (by_share(one) for one in found.values())
    noising = by_share(found["train"].reverse)
    first = list(largest(train, max(COUNTS)))
    read = {head: {part: largest(paths(m, task, head, part, train), 3) for part in "qkv"} for head in first[:2]}
    groups = together(m, others, first, draws)
    made = {
        "prompts": n, "right": len(task), "right_heldout": len(others),
        "gap": gap(found["train"]), "gap_heldout": gap(found["heldout"]),
        "noise_floor": found["train"].noise_floor,
        "first": largest(train, 8), "first_heldout": largest(heldout, 8),
        "over_a_tenth": sum(share > 0.1 for share in train.values()),
        "against": largest({site: share for site, share in train.items() if share < 0}, 3),
        "spearman_noising": spearman(*aligned(train, {site: -share for site, share in noising.items()})),
        "spearman_heldout": spearman(*aligned(train, heldout)),
        "looks_at": {site: looks(m, task, site) for site in first[:4]},
        "writes": writes(m, task, first[:4]), "movers": movers(m, task),
        "by_input": {head: by_input(m, task, head) for head in first[:2]}, "reads": read, "together": groups,
    }  # fmt: skip
    rows = [{"site": s, "estimate": v, "low": v, "high": v} for s, v in largest(train, 12).items()]
    finish(chosen, "ioi", made, {
        "ioi": head_map(map_rows(train), "IOI: share of the gap that one head restores"),
        "ioi-first": bars(rows, "IOI: the twelve heads with the largest effects", unit="share of the gap"),
        "ioi-together": curves(
            [{"name": "first heads", "x": groups["counts"], "y": groups["restored"]},
             {"name": "random, like layer and norm", "x": groups["counts"], "y": groups["random"],
              "low": groups["random_low"], "high": groups["random_high"]}],
            "IOI: heads put into the corrupt held-out prompts together", x_title="heads",
            y_title="share of the gap"),
    })  # fmt: skip


def swept(m: interp.Model, task: interp.Task, *, both: bool) -> Any:
    return interp.patch(m, base=task.corrupt, source=task.clean, metric=task.metric, sites="L*.H*.z", both=both)


def gap(effects: Any) -> float:
    return float((effects.source - effects.base).double().mean())


def by_share(effects: Any) -> dict[str, float]:
    """Shares of the gap between the two runs, whichever of them is the better one."""
    whole = abs(gap(effects))
    return {site: value / whole for site, value in by_head(effects).items()}


def aligned(a: dict[str, float], b: dict[str, float]) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor(list(a.values())), torch.tensor([b[site] for site in a])


def looks(m: interp.Model, task: interp.Task, head: str) -> dict[str, float]:
    """The weight that the last token puts on each name, on what follows the first mention of the subject, and on the
    first token."""
    pattern = m.run(task.clean, record=f"{head}.pattern")[f"{head}.pattern"][:, 0]
    valid = task.clean.valid
    last = (valid * torch.arange(valid.shape[1])).amax(1)
    rows = pattern[torch.arange(len(pattern)), last]
    spans = {name: [rows[b, slice(*span)].sum() for b, span in enumerate(task.positions[name].rows)]
             for name in ("IO", "S1", "S2")}  # fmt: skip
    found = {name: float(torch.stack(parts).mean()) for name, parts in spans.items()}
    start = valid.int().argmax(1)
    return {**found, "first": float(rows[torch.arange(len(rows)), start].mean())}


def writes(m: interp.Model, task: interp.Task, heads: list[str]) -> dict[str, dict[str, float]]:
    """What heads write straight to the logits of the two names, less what they write to other names' on average."""
    spelled = [m.tokenizer(f" {name}", add_special_tokens=False).input_ids for name in NAMES["train"]]
    others = [ids[0] for ids in spelled if len(ids) == 1]
    taken = [{*a, *w} for a, w in zip(task.answer_ids, task.wrong_ids, strict=True)]
    rest = tuple(tuple(i for i in others if i not in mine) for mine in taken)
    sides = {"IO": task.answer_ids, "S": task.wrong_ids, "others": rest}
    found = {side: by_head(interp.patching.direct_effect(m, task.clean, answers=ids).only("result"))
             for side, ids in sides.items()}  # fmt: skip
    return {head: {side: found[side][head] - found["others"][head] for side in ("IO", "S")} for head in heads}


def movers(m: interp.Model, task: interp.Task) -> dict[str, float]:
    """The heads with the largest direct effects on the logit difference."""
    direct = interp.patching.direct_effect(m, task.clean, metric=task.metric)
    return largest(by_head(direct.only("result")), 5)


def by_input(m: interp.Model, task: interp.Task, head: str) -> dict[str, float]:
    """How much of the gap comes back with one of a head's inputs, keys and values being those of its kv group."""
    place = head_place(head)
    group = place.head // m.anatomy.layer(m.anatomy.one(f"{head}.z")).group
    sites = [f"{head}.q", *(f"L{place.layer}.K{group}.{part}" for part in "kv")]
    found = interp.patch(m, base=task.corrupt, source=task.clean, metric=task.metric, sites=sites)
    return dict(zip("qkv", found.normalised.tolist(), strict=True))


def paths(m: interp.Model, task: interp.Task, head: str, part: str, train: dict[str, float]) -> dict[str, float]:
    """How much of the gap goes from the embedding, MLPs and earlier heads straight into one input of a head."""
    place = head_place(head)
    group = m.anatomy.layer(m.anatomy.one(f"{head}.z")).group
    receiver = f"{head}.q_in" if part == "q" else f"L{place.layer}.K{place.head // group}.{part}_in"
    before = {site: share for site, share in train.items() if head_place(site).layer < place.layer}
    few = task.take(range(min(8, len(task))))
    found = interp.path_patch(
        m, base=few.corrupt, source=few.clean, metric=few.metric, receivers=receiver,
        senders=["embed", *(f"L{layer}.mlp_write" for layer in range(place.layer)), *largest(before, NEAR)],
    )  # fmt: skip
    return by_share(found)


def together(m: interp.Model, task: interp.Task, heads: list[str], draws: int) -> dict[str, Any]:
    """Groups of heads from the clean run in the corrupt one, beside random groups."""
    by = norms(m, task.clean)
    counts = [n for n in COUNTS if n <= len(by) // 3]
    drawn = {n: random_sets(heads[:n], by, draws) for n in counts}
    cells = [[f"{site}.z" for site in group] for n in counts for group in (heads[:n], *drawn[n])]
    found = interp.patch(m, base=task.corrupt, source=task.clean, metric=task.metric, cells=cells)
    by_label = dict(zip(found.sites, found.normalised.tolist(), strict=True))  # the same group twice is one cell
    shares = torch.tensor([by_label[" + ".join(cell)] for cell in cells]).view(len(counts), draws + 1)
    low, high = shares[:, 1:].amin(1), shares[:, 1:].amax(1)
    return {"counts": counts, "restored": shares[:, 0].tolist(), "random": shares[:, 1:].mean(1).tolist(),
            "random_low": low.tolist(), "random_high": high.tolist(), "draws": draws}  # fmt: skip


if __name__ == "__main__":
    main()
