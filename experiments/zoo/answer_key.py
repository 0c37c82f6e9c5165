"""Print every planted model's heads and what each does, checked by zeroing all heads of the model one by one.

    python experiments/zoo/answer_key.py

For each probe (a clean and a corrupt prompt) the effect of a head is the change of the answer's logit difference on the
clean side when the head's output is set to zero. A head is right when the effect is there exactly where the key says
so: planted heads the probe names lose logit difference, null heads change nothing, bit for bit. Heads that the key
itself says zeroing misses (an OR pair, a backup, a sink) are marked "hidden". Exits with 1 if anything disagrees.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from interp.planted import NAMES, build, key
from interp.planted.answers import AnswerKey, Probe
from interp.planted.oracle import changed, difference, inputs, zero

VISIBLE = 0.1


def effects(name: str, probe: Probe) -> tuple[float, dict[str, float]]:
    """The clean logit difference and how it changes with each head zeroed."""
    model, processor = build(name)
    clean, _ = inputs(processor, probe)
    with torch.no_grad():
        base = difference(model, processor, probe, clean).item()
        sites = [*(head.site for head in key(name).heads), *key(name).null]
        return base, {site: _without(model, processor, probe, clean, site=site) - base for site in sites}


def _without(model: nn.Module, processor: Any, probe: Probe, clean: Mapping[str, Tensor], *, site: str) -> float:
    with changed(model, {site: zero}):
        return difference(model, processor, probe, clean).item()


def predicted(answers: AnswerKey, probe: Probe, site: str) -> float | None:
    """The effect of zeroing that head worked out on paper, where the key has one."""
    rows = [e for e in answers.expected if (e.probe, e.method, e.heads) == (probe.name, "zero", (site,))]
    return rows[0].effect if rows else None


def verdict(answers: AnswerKey, probe: Probe, site: str, effect: float) -> str:
    """What the effect means next to the key; a text that starts with WRONG disagrees."""
    if site in answers.null:
        return "null" if effect == 0 else "WRONG: a null head changed something"
    paper = predicted(answers, probe, site)
    if paper is not None and abs(effect - paper) > 1e-3:
        return f"WRONG: {paper:+.2f} was worked out"
    if abs(effect) > VISIBLE:
        return "seen" if site in probe.heads or paper is not None else "also on the path"
    return "hidden" if site in probe.heads or paper == 0 else "not asked here"


def show(answers: AnswerKey, probe: Probe) -> int:
    """Print one probe's table; returns how many rows disagree with the key."""
    base, changes = effects(answers.model, probe)
    print(f"  probe {probe.name}: {probe.answer!r} over {probe.wrong!r} by {base:.2f}")
    wrong = 0
    for head in answers.heads:
        said = verdict(answers, probe, head.site, changes[head.site])
        wrong += said.startswith("WRONG")
        print(f"    without {head.site:<12} {changes[head.site]:+7.2f}  {said}")
    loud = [site for site in answers.null if changes[site] != 0]
    print(f"    without any one null head: {'exactly 0' if not loud else f'WRONG: {loud}'}")
    return wrong + len(loud)


def main() -> int:
    """Print the tables; say how many rows disagree."""
    torch.set_num_threads(1)
    wrong = 0
    for answers in map(key, NAMES):
        print(f"\n{answers.model}: {len(answers.heads)} planted heads, {len(answers.null)} null heads")
        for head in answers.heads:
            print(f"  {head.site:<12} {head.role:<20} {head.does}")
        wrong += sum(show(answers, probe) for probe in answers.probes)
    print("\nevery row agrees with the key" if not wrong else f"\n{wrong} rows disagree with the key")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
