"""Do two models still see the same? Their representations side by side, layer by layer and head by head.

Whether a model forgot is asked of its outputs; "Are We Truly Forgetting?" (arXiv 2503.06991) and RESTOR (arXiv
2411.00204) ask of the layers before them, and compare with the model before, or with one that never knew. For every
site (residuals and heads' z), on the same examples in both models:

    cka      linear centred kernel alignment of the two models' vectors (arXiv 1905.00414), 1 where they are alike
    probe    the share of examples whose label a linear probe reads off a model's vectors, in either model; by label
             with `of=`, which says whether a class is still there for whoever reads it

Probes are fitted anew for each model, site and fold (`similarity.py`), so a label that a model no longer says and a
probe still reads is in there. Cost: one forward pass of each model. Limits: a probe finds what can be read, not what is
used (`patch_across` asks that), and neither number knows size: what was made small, and not 0, is all there. With few
examples CKA is too large and a probe too weak: give dozens a class.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.finite import finite
from interp.forgetting.similarity import FOLDS, cka_interval, probed
from interp.hooks.errors import InputsError, SiteError
from interp.hooks.head_names import columns_of, head_place, layer_number
from interp.hooks.inputs.inputs import Positions
from interp.hooks.run.tape import Tape, site_inputs
from interp.hooks.sites import Site
from interp.provenance import about
from interp.records import Method, register
from interp.results.figures.figure import Figure
from interp.results.figures.plots import by_site
from interp.results.intervals import mean_interval
from interp.results.saved import Saved

if TYPE_CHECKING:
    from interp.model import Model


@dataclass(frozen=True, eq=False)
class ModelsCompared(Saved):
    """`cka` [site]; `right` [model, site, example], whether the probe was right."""

    STEM = "models_compared"

    sites: tuple[str, ...]
    """What is compared, heads one by one: "L3.resid_post", "L3.H1.z"."""
    cka: Tensor
    """[site]: linear CKA of the two models' vectors, 0 to 1 (1: alike); NaN where one side does not vary."""
    ends: Tensor
    """[2, site]: the interval of CKA."""
    right: Tensor
    """1, 0, and NaN where there are no labels; model 0 is the first one."""
    labels: tuple[int, ...] = ()
    """The label of each example; empty where none were given."""
    meta: Mapping[str, Any] = field(default_factory=dict)

    def to_frame(self, of: int | None = None) -> Any:
        """One row per site: CKA with its interval as the estimate, and what probes read in both models with intervals
        and their difference; `of` counts only examples with that label."""
        import pandas

        rows = self._rows(of)
        chosen = self.right[:, :, rows]
        columns: dict[str, Any] = {}
        for n, name in enumerate(("probe", "probe_other")):
            low, high = mean_interval(chosen[n])
            columns |= {name: chosen[n].mean(1), f"{name}_low": low, f"{name}_high": high}
        low, high = mean_interval(chosen[0] - chosen[1])
        lost = {"difference": (chosen[0] - chosen[1]).mean(1), "difference_low": low, "difference_high": high}
        places = [head_place(site).head if ".H" in f".{site}" else None for site in self.sites]
        component = ["z" if head is not None else site.rpartition(".")[2] for head, site in
                     zip(places, self.sites, strict=True)]  # fmt: skip
        return pandas.DataFrame(
            {"site": self.sites, **columns_of(map(layer_number, self.sites)), "head": places, "component": component,
             "method": "compare_models", "estimate": self.cka, "low": self.ends[0], "high": self.ends[1],
             **columns, **lost, "n": len(rows)}
        )  # fmt: skip

    def _rows(self, of: int | None) -> list[int]:
        if of is None:
            return list(range(self.right.shape[2]))
        rows = [n for n, label in enumerate(self.labels) if label == of]
        if not rows:
            raise InputsError(f"no example has the label {of}; there are {sorted(set(self.labels))}.")
        return rows

    def top(self, n: int = 10) -> Any:
        """The n sites that are least alike."""
        return self.to_frame().sort_values("estimate", kind="stable").head(n)

    def _figure(self, of: int | None = None) -> Figure:
        """CKA and both probes of the residuals, from the first layer to the last."""
        frame = self.to_frame(of)
        frame = frame[frame["head"].isna()]
        lines = {"CKA": "estimate", "probe": "probe", "probe of the other": "probe_other"}
        return by_site(frame, lines, y="CKA and accuracy")

    def __repr__(self) -> str:
        least = int(self.cka.nan_to_num(nan=2.0).argmin())
        said = f"ModelsCompared at {len(self.sites)} sites: least alike {self.sites[least]}, CKA {self.cka[least]:.3g}"
        if not self.labels:
            return said
        gap = (self.right[0] - self.right[1]).mean(1)
        most = int(gap.argmin())
        return f"{said}; a probe loses most at {self.sites[most]}, {float(gap[most]):+.0%}"


def compare_models(
    model: Model,
    other: Model,
    data: Any,
    *,
    labels: Sequence[int] | Tensor | None = None,
    sites: str | Iterable[str] = ("L*.resid_post", "L*.H*.z"),
    positions: Positions = "last",
    folds: int = FOLDS,
) -> ModelsCompared:
    """`model` is the one that forgot, `other` the one before it, or one that never knew: of one architecture. A vector
    is the mean over `positions`; "cls" for a classifier of pictures, "last" for a text."""
    x = model.inputs(data)
    model.ready()
    given = [sites] if isinstance(sites, str) else list(sites)
    known = None if labels is None else torch.as_tensor(labels).cpu()
    _check(x.batch, known, folds)
    tapes = _recorded(model, other, x, given)
    places = [site for text in given for site in model.anatomy.sites(text)]
    pairs = [[_vectors(model, tape, site, positions) for tape in tapes] for site in places]
    names: list[str] = []
    found: list[tuple[Tensor, Tensor]] = []
    for site, (mine, theirs) in zip(places, pairs, strict=True):
        if mine.ndim == 2:
            names, found = [*names, str(site)], [*found, (mine, theirs)]
            continue
        for n, head in enumerate(model.anatomy.layer(site).heads_of(site)):
            names.append(str(Site(site.tower, site.layer, site.component, (head,))))
            found.append((mine[:, n], theirs[:, n]))
    alike = [cka_interval(mine, theirs) for mine, theirs in found]
    right = torch.full((2, len(names), x.batch), torch.nan, dtype=torch.float64)
    if known is not None:
        for n, pair in enumerate(found):
            for which, vectors in enumerate(pair):
                right[which, n] = (probed(vectors[None], known, folds=folds)[0] == known).double()
    meta = {**about(model.module, x), "method": "compare_models", "other": about(other.module, None)["model_hash"],
            "positions": str(positions), "folds": folds}  # fmt: skip
    whole, low, high = (torch.stack(one) for one in zip(*alike, strict=True))
    return ModelsCompared(
        tuple(names), whole, torch.stack([low, high]), right, () if known is None else tuple(known.tolist()), meta
    )


def _check(rows: int, labels: Tensor | None, folds: int) -> None:
    if rows < 2:
        raise InputsError(f"{rows} example has no spread to compare: give at least two, better dozens.")
    if labels is None:
        return
    if labels.shape != (rows,) or labels.is_floating_point() or bool((labels < 0).any()):
        raise InputsError(f"labels= are one whole number from 0 for each of the {rows} examples.")
    if folds < 2:
        raise InputsError(f"folds= is at least 2, so that probes are judged on what they have not seen; got {folds}.")


def _recorded(model: Model, other: Model, x: Any, sites: Sequence[str]) -> tuple[Tape, Tape]:
    """The same inputs through both."""
    return model.run(x, record=sites), model.run(x, record=sites, source_model=other)


def _vectors(model: Model, tape: Tape, site: Site, positions: Positions) -> Tensor:
    """[example, d] or [example, head, d]: the mean over the positions."""
    value = tape[site]
    if site.component in ("pattern", "scores", "logits") or value.ndim < 3:
        raise SiteError(f"{site} has no vectors at positions: compare residuals, writes, q, k, v or z.")
    assert tape.inputs is not None
    inputs = site_inputs(model.anatomy, tape.inputs, site)
    mask = inputs.mask(positions).to(value.device)
    if mask.shape != value.shape[:2]:
        raise InputsError(f"{site} is {list(value.shape)}, and its inputs have {list(mask.shape)} [rows, positions].")
    share = mask / mask.sum(1, keepdim=True)
    return finite(torch.einsum("bp,bp...->b...", share.to(value.dtype).double(), value.double()).cpu(), str(site))


register(
    Method(
        "interp.forgetting.compare_models",
        number="linear CKA of two models' vectors: 1 where they are alike; the share of labels that a probe reads",
        shown="table",
        signed=False,
        values="right",
        passes=lambda t: 2,
        example=lambda t: compare_models(
            t.model, t.model, t.base, labels=[0, 1, 0], folds=3,
            sites=(f"{t.tower}L*.resid_post", f"{t.heads}.z"), positions=t.reads,
        ),
    )
)  # fmt: skip
