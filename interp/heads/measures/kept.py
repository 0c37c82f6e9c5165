"""Sweeps of a table of importance that is written down: each in a directory of its own, and what the table takes of it.

A measure that is swept over heads is a call of `interp.patch` or `interp.attribute` in `measures/NAME`, whose cells are
what shards divide. What a measure has in addition to its sweeps is the same in every shard; its numbers are filled in
once the sweeps are whole, by `filled`, which needs no model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from interp.attribution.attribute import attribute, estimated
from interp.cells.shards import Frame, Shard, frame_of
from interp.heads.measures.measured import Measured
from interp.heads.measures.table import Importance
from interp.metrics.judge import Metric
from interp.patching.patch import patch
from interp.patching.swept import effects_in, unswept
from interp.results.effects import Effects

FOLDER = "measures"


@dataclass(frozen=True)
class Keep:
    """Where sweeps are written down, which part of them is done, and by whom."""

    out: Path | None = None
    shard: Shard | None = None
    engine: Any = None

    def swept(self, place: str, model: Any, metrics: Mapping[str, Metric], **how: Any) -> dict[str, Effects]:
        """The effects of a sweep, 0 where another shard has them."""
        if self.out is None:
            found: dict[str, Effects] = patch(model, metric=metrics, engine=self.engine, **how)
            return found
        folder, shard = self.out / FOLDER / place, None if self.shard is None else str(self.shard)
        found = patch(model, metric=metrics, out=folder, shard=shard, engine=self.engine, **how)
        return found if shard is None else unswept(_there(folder))

    def estimated(self, place: str, model: Any, **how: Any) -> Effects:
        """Estimates with their check, which is left to the merge where it is a shard's."""
        found: Any
        if self.out is None or how["verify"] == 0:
            found = attribute(model, **how, engine=self.engine if how["verify"] != 0 else None)
        else:
            folder, shard = self.out / FOLDER / place, None if self.shard is None else str(self.shard)
            found = attribute(model, **how, out=folder, shard=shard, engine=self.engine)
            found = found if shard is None else estimated(_there(folder))
        made: Effects = found
        return made


def _there(folder: Path) -> Frame:
    frame = frame_of(folder)
    assert frame is not None
    return frame


def lost(found: Effects) -> Tensor:
    """What the metric loses: the effect of taking a head away, turned round."""
    return 0.0 - found.values.double()


def drawn(found: Sequence[Effects]) -> tuple[Tensor, Tensor | None]:
    """[head, example], the mean of what several draws lose, and [draw, head] of each where there are several."""
    each = torch.stack([lost(one) for one in found])
    return each.mean(0), each.mean(2) if len(found) > 1 else None


def bare(found: Importance) -> Frame:
    """The table without what comes with the sweeps."""
    tensors, facts = found.tensors(), found.facts()
    for n, said in enumerate(facts["measures"]):
        kind = said["notes"].get("swept", {}).get("kind")
        if kind in ("lost", "gained", "drawn"):
            tensors = {name: x for name, x in tensors.items() if not name.startswith(f"{n}.")}
            said["notes"] = {**said["notes"], "noise_floor": None}
    return Frame(facts, tensors)


def filled(folder: Path, frame: Frame) -> Importance:
    """The table whose sweeps are whole, as the call itself writes it."""
    tensors, measures = dict(frame.tensors), []
    for n, said in enumerate(frame.facts["measures"]):
        notes = dict(said["notes"])
        swept = notes.pop("swept", None)
        if swept is not None and swept["kind"] == "estimate":
            notes["verify"] = Effects.load(folder / FOLDER / swept["places"][0]).meta["verify"]
        elif swept is not None:
            found = [effects_in(folder / FOLDER / place)[swept["metric"]] for place in swept["places"]]
            values, seeds = drawn(found) if swept["kind"] == "drawn" else (_signed(found[0], swept["kind"]), None)
            tensors |= {f"{n}.values": values} | ({} if seeds is None else {f"{n}.seeds": seeds})
            notes["noise_floor"] = found[0].noise_floor
        measures.append({**said, "notes": notes if swept is None else {**notes, "swept": swept}})
    meta = {**frame.facts["meta"], "notes": {one["method"]: one["notes"] for one in measures if one["notes"]}}
    made = Importance.restored({**frame.facts, "measures": measures, "meta": meta}, tensors)
    made.save(folder)
    return made


def _signed(found: Effects, kind: str) -> Tensor:
    return found.values if kind == "gained" else lost(found)


def noted(one: Measured, kind: str, metric: str, places: Sequence[str]) -> Measured:
    """A measure that says which sweeps it comes from, for a table that is written down."""
    return replace(one, notes={**one.notes, "swept": {"kind": kind, "metric": metric, "places": list(places)}})
