"""The masking experiment: how much of its answers a model keeps when heads are removed, compared with random heads.

Wu et al. 2024 (arXiv 2404.15574) mask the K highest retrieval heads and K random ones. `uniform` lets a masked head
weigh every visible key alike, as the authors' code does; `zero` takes its output away. `phase="decode"` masks the rows
that predict the answer and nothing else, as their code does, `"both"` every row. Recall is the share of the answer's
tokens that are predicted, each after the right ones. Random heads are matched on layer and output norm
(`head_sets.py`), and drawn with a seed. Cost: with `decode` one prefill and the answer's rows for every set of
heads, with `both` one forward pass for every set; sets are counts x (1 + draws).
Limits: heads beyond the needle's own copying are needed as well (those that find the key), and take recall with them;
a head another one backs up shows nothing. Decoder-only language models whose cache can be copied.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from interp.finite import finite
from interp.heads.sets import Draws, How, known, mask_edits, matched, output_norms
from interp.hooks.edits.edits import Edit
from interp.hooks.errors import InputsError, ModelError
from interp.hooks.stand.output import logits_of
from interp.long.masking import Masking
from interp.long.needles import alike, attention_sites, fitted, head_names
from interp.provenance import about
from interp.records import Method, register
from interp.tasks.task import Task

if TYPE_CHECKING:
    from interp.model import Model

Phase = Literal["decode", "both"]


def mask_heads(
    model: Model,
    needles: Any,
    *,
    heads: Sequence[str],
    counts: Sequence[int] | None = None,
    how: How = "uniform",
    phase: Phase = "decode",
    draws: int = 100,
    seed: int = 0,
    batch: int = 32,
) -> Masking:
    """Recall on `needles` with the first `counts` of `heads` masked ("L1.H0", best first: `r.top(8)["site"]`), and
    with matched random heads in their place. Use other needles than those the heads were found on."""
    if how not in ("uniform", "zero") or phase not in ("decode", "both"):
        raise InputsError(f"how is 'uniform' or 'zero' and phase 'decode' or 'both', got {how!r} and {phase!r}.")
    if draws < 0:
        raise InputsError(f"draws= is how many sets of random heads are compared with, at least 0; got {draws}.")
    sites = attention_sites(model)
    task = fitted(model, needles)
    ranked = known(list(heads), head_names(model, sites))
    sizes = _sizes(counts, len(ranked))
    texts = [_Texts(model, task, rows, ids, phase) for rows, ids in alike(task, batch)]
    norms = _norms(model, texts, sites, phase)
    drawn = [matched(ranked[:n], norms, draws=draws, seed=seed) for n in sizes]
    recall = torch.stack([_recalled(texts, ranked[:n], how, len(task)) for n in (0, *sizes)])
    seen: dict[tuple[str, ...], float] = {}
    controls = torch.tensor(
        [[_control(seen, texts, one, how, len(task)) for one in some.sets] for some in drawn], dtype=torch.double
    )
    meta = {**about(model.module, task.clean), "method": "masked heads", "how": how, "phase": phase, "seed": seed,
            "draws": [_said(some) for some in drawn]}  # fmt: skip
    return Masking(ranked, tuple(sizes), recall, controls.view(len(sizes), draws), meta)


def _sizes(counts: Sequence[int] | None, most: int) -> list[int]:
    """How many heads are masked: as asked, or 1, 2, 4 and so on up to all."""
    sizes = sorted({*(2**n for n in range(most.bit_length()) if 2**n <= most), most}) if counts is None else counts
    if any(not 1 <= n <= most for n in sizes) or not sizes:
        raise InputsError(f"counts= are from 1 to the {most} heads given, got {list(sizes)}.")
    return list(sizes)


def _norms(model: Model, texts: Sequence[_Texts], sites: Any, phase: Phase) -> dict[str, float]:
    first = texts[0]
    rows = range(first.start, first.length - 1) if phase == "decode" else "all"
    return output_norms(model, {"input_ids": first.ids}, sites, positions=rows)


def _recalled(texts: Sequence[_Texts], heads: Sequence[str], how: How, needles: int) -> Tensor:
    found = torch.zeros(needles, dtype=torch.double)
    for one in texts:
        found[one.rows] = one.recall(mask_edits(heads, how))
    return found


def _control(
    seen: dict[tuple[str, ...], float], texts: Sequence[_Texts], heads: tuple[str, ...], how: How, needles: int
) -> float:
    """Mean recall without a set of random heads; sets that come again are not computed again."""
    if heads not in seen:
        seen[heads] = float(_recalled(texts, heads, how, needles).mean())
    return seen[heads]


def _said(draws: Draws) -> dict[str, Any]:
    return {"distinct": draws.distinct, "norm_ratio": draws.norm_ratio, "same_layer": draws.same_layer}


class _Texts:
    """Needles of one length, read up to the answer's first row once if only that row and later ones are masked."""

    def __init__(self, model: Model, task: Task, rows: list[int], ids: Tensor, phase: Phase) -> None:
        self.model, self.rows, self.ids = model, rows, ids.to(model.device)
        self.answers = torch.tensor([task.answer_ids[row] for row in rows], device=model.device)
        self.length = self.ids.shape[1]
        self.start = self.length - self.answers.shape[1] - 1
        self.past = self._prefix() if phase == "decode" and self.start else None

    def _prefix(self) -> Any:
        with torch.no_grad():
            out = self.model.module(self.ids[:, : self.start], use_cache=True, **self.model.last_logits_only())
        if getattr(out, "past_key_values", None) is None:
            raise ModelError(f"{type(self.model.module).__name__} gave no cache to decode from: use phase='both'.")
        return out.past_key_values

    def recall(self, edits: Sequence[Edit]) -> Tensor:
        """[row]: the share of the answer that is said under edits."""
        with self.model.edited(edits), torch.no_grad():
            logits = logits_of(self._run())
        if logits is None:
            raise ModelError(f"{type(self.model.module).__name__} has no logits, so it answers nothing.")
        finite(logits[:, -self.answers.shape[1] :], "logits")
        said = logits[:, -self.answers.shape[1] :].argmax(-1)
        return (said == self.answers).double().mean(1).cpu()

    def _run(self) -> Any:
        if self.past is None:
            return self.model.module(self.ids[:, :-1], use_cache=False)
        past = copy.deepcopy(self.past)
        return self.model.module(self.ids[:, self.start : -1], past_key_values=past, use_cache=True)


register(
    Method(
        "interp.long.mask_heads",
        number="share of the answer that the model still says with heads masked, 0 to 1",
        shown="curve",
        needs=("needles",),
        unfit={
            "vit": "it reads no text",
            "lvlm": "its pictures hold no words to copy",
            "encoder-decoder": "the answer's rows do not see the text by self-attention",
        },
        passes=lambda t: 2 + 2 * 6,
        values="recall",
        example=lambda t: mask_heads(t.reader, t.needles, heads=["L1.H0", "L1.H1"], counts=[1, 2], draws=2),
    )
)
