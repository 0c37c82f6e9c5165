"""What a model says with a picture against what it says without looking: two branches, decoded as one text.

Each branch is the same model on inputs of its own, under edits of its own, with a KV cache of its own; both are given
the token that is chosen. With p the branch that is believed and p' the one it is compared with, in every step

    score  = (1 + amount) log p - amount log p'        where log p >= log cutoff + max log p,   else -inf

and the largest score is taken, or a draw from its softmax where `seed` is given. This one rule is that of four methods,
which differ in their branches: VCD (Leng et al., CVPR 2024, arXiv 2311.16922; a noised picture; amount 1, cutoff 0.1),
PAI (arXiv 2407.21771; no picture; its gamma is 1 + amount, 1.1), DAMRO (arXiv 2410.04514; outlier tokens alone; 2) and
any edit that makes a model look away (ACT's and VAR's, arXiv 2406.15765 and 2503.03321, are put among `edits`).
Cost: two forward passes a token, one of each branch.
Limits: models that only decode, greedy or sampled, one sequence a row; prompts padded on the left. transformers' other
processors of scores (repetition penalty and so on) are not applied, as in the papers' code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from interp.generate import Generated, ends_of, fired, read_texts
from interp.hooks.edits.edits import Edit, MaskKeys
from interp.hooks.errors import InputsError, ModelError
from interp.hooks.inputs.inputs import Inputs
from interp.hooks.run.session import Session
from interp.hooks.stand.output import logits_of
from interp.records import Method, register

if TYPE_CHECKING:
    from interp.model import Model


@dataclass(frozen=True, eq=False)
class Contrast:
    """Two branches of a model, and how they are compared; nothing has run yet."""

    model: Model = field(repr=False)
    """The model of both branches."""
    inputs: Inputs
    """The inputs of the branch that is believed."""
    edits: tuple[Edit, ...]
    """Of the branch that is believed; `m.run(x, edits=c.edits)` is that branch alone."""
    against: Inputs
    """The inputs of the other branch, with as many rows."""
    against_edits: tuple[Edit, ...]
    """The edits of the other branch."""
    amount: float
    """How much of the difference of log-probabilities is added, 0 or more."""
    cutoff: float
    """Words less likely than this share of the most likely word are left out, 0 to 1."""

    def mixed(self, believed: Tensor, other: Tensor) -> Float[Tensor, "row vocabulary"]:
        """The rule, on the logits of both branches."""
        return mixed(believed, other, amount=self.amount, cutoff=self.cutoff)

    def scores(self) -> Float[Tensor, "row vocabulary"]:
        """Of the first token after the prompt: one pass of each branch."""
        last = [_last(self.model, x, edits) for x, edits in self._sides()]
        return self.mixed(*last).cpu()

    def generate(self, *, max_new_tokens: int = 20, seed: int | None = None, eos_token_id: Any = None) -> Generated:
        """The text, its ids, and the log-probabilities of these under the normalised scores."""
        how = {} if eos_token_id is None else {"eos_token_id": eos_token_id}
        with torch.no_grad():
            return _decoded(self, max_new_tokens, seed, how)

    def _sides(self) -> tuple[tuple[Inputs, tuple[Edit, ...]], ...]:
        return (self.inputs, self.edits), (self.against, self.against_edits)


def contrast(
    model: Model,
    inputs: Any,
    *,
    edits: Iterable[Edit] = (),
    against: Any = None,
    against_edits: Iterable[Edit] = (),
    amount: float = 1.0,
    cutoff: float = 0.1,
) -> Contrast:
    """`against` is the other branch's inputs, with as many rows (these inputs, if not given). Then `.generate()` and
    `.scores()`."""
    if not 0 <= amount < float("inf"):
        raise InputsError(f"amount= is how much of the difference is added, 0 or more; got {amount}.")
    if not 0 <= cutoff <= 1:
        raise InputsError(f"cutoff= is a share of the likeliest token's probability, from 0 to 1; got {cutoff}.")
    x, edits, others = model.inputs(inputs), tuple(edits), tuple(against_edits)
    _speaks(model, x)
    if against is None and edits == others:
        raise InputsError(
            "both branches are the same, so they cannot be contrasted: give against=, or edits of one of them."
        )
    y = x if against is None else model.inputs(against)
    if y.batch != x.batch:
        raise InputsError(f"the branches have {x.batch} and {y.batch} rows; each row needs one in the other branch.")
    return Contrast(model, x, edits, y, others, float(amount), float(cutoff))


def _speaks(model: Model, x: Inputs) -> None:
    if getattr(model.config, "is_encoder_decoder", False) or x.main != "text":
        raise ModelError(
            "contrast decodes models that read prompt and answer as one sequence of tokens, and this model's main"
            f" tower is {x.main!r}."
        )


def mixed(believed: Tensor, other: Tensor, *, amount: float, cutoff: float) -> Float[Tensor, "row vocabulary"]:
    """(1 + amount) log p - amount log p', -inf where p is below `cutoff` times its largest."""
    p, q = (logits.float().log_softmax(-1) for logits in (believed, other))
    found = (1 + amount) * p - amount * q.to(p.device)
    if not cutoff:
        return found
    least = p.amax(-1, keepdim=True) + torch.tensor(cutoff, dtype=p.dtype).log().item()
    return found.masked_fill(p < least, -torch.inf)


def _last(model: Model, x: Inputs, edits: tuple[Edit, ...]) -> Tensor:
    logits = model.run(x, edits=edits)["logits"]
    at = x.mask("last").to(logits.device)
    found: Tensor = logits[at]
    return found


class _Branch:
    """One branch on its way: what transformers prepared for it, its cache, its edits."""

    def __init__(self, model: Model, x: Inputs, edits: tuple[Edit, ...], *, most: int, how: Mapping[str, Any]) -> None:
        _refuse(model, x)
        host: Any = model.module
        self.model, self.module = model, host
        self.session = Session(model.module, model.ready(), edits=edits, inputs=x, family=model.family)
        self.prefilled = False
        kept: list[Any] = []
        host.generate(
            **model.called_with(x.kwargs), max_new_tokens=most, do_sample=False, custom_generate=_keeping(kept), **how
        )
        self.host, self.ids, self.config, self.kwargs = kept
        if self.host is not self.module:
            raise ModelError(
                f"{type(self.module).__name__} generates with a module inside of it, so contrast cannot change the"
                " passes of its branches."
            )

    def logits(self) -> Tensor:
        """Of the next token: the prompt's first, then one token a call."""
        with self.model.on(self.session):
            out = self._next() if self.prefilled else self.module._prefill(self.ids, self.config, self.kwargs)
        self.kwargs = self.module._update_model_kwargs_for_generation(out, self.kwargs, is_encoder_decoder=False)
        self.prefilled = True
        logits = logits_of(out)
        assert logits is not None
        return logits[:, -1]

    def _next(self) -> Any:
        given = self.module.prepare_inputs_for_generation(self.ids, next_sequence_length=1, **self.kwargs)
        return self.module(**given, return_dict=True)

    def add(self, token: Tensor) -> None:
        """Go on with a token [row]."""
        self.ids = torch.cat([self.ids, token.to(self.ids)[:, None]], 1)


def _keeping(kept: list[Any]) -> Callable[..., Tensor]:
    """A way of generating for transformers that keeps what was prepared for it, and generates nothing."""

    def prepared(model: Any, input_ids: Tensor, *, generation_config: Any, **given: Any) -> Tensor:
        aside = ("logits_processor", "stopping_criteria", "synced_gpus", "streamer")
        own = {name: value for name, value in given.items() if name not in aside}
        kept.extend([model, input_ids, generation_config, own])
        return input_ids

    return prepared


def _refuse(model: Model, x: Inputs) -> None:
    if not hasattr(model.module, "generate"):
        raise ModelError(f"{type(model.module).__name__} cannot generate: it has no generate method.")
    if not bool(x.valid[:, -1].all()):
        raise InputsError(
            "generating continues from the last column, so both branches must be padded on the left: m.prepare(...,"
            " padding='left')."
        )


def _decoded(c: Contrast, most: int, seed: int | None, how: Mapping[str, Any]) -> Generated:
    branches = [_Branch(c.model, x, edits, most=most, how=how) for x, edits in c._sides()]
    device = branches[0].ids.device
    stops = ends_of(c.model, how).to(device)
    filler = _filler(c.model, stops)
    random = None if seed is None else torch.Generator(device="cpu").manual_seed(seed)
    going = torch.ones(c.inputs.batch, dtype=torch.bool, device=device)
    ids, logprobs = [], []
    for _ in range(most):
        scores = c.mixed(*(branch.logits() for branch in branches)).to(device)
        token = _chosen(scores, random)
        token = token if filler is None else torch.where(going, token, filler)
        said = scores.log_softmax(-1).gather(-1, token[:, None]).squeeze(-1)
        ids.append(token)
        logprobs.append(torch.where(going, said, 0.0))
        going = going & ~torch.isin(token, stops)
        if not bool(going.any()):
            break
        for branch in branches:
            branch.add(token)
    for branch in branches:
        fired(branch.session, most)
    return read_texts(c.model, torch.stack(ids, 1), torch.stack(logprobs, 1))


def _filler(model: Model, stops: Tensor) -> Tensor | None:
    """What fills up a row that has ended."""
    pad = getattr(getattr(model.module, "generation_config", None), "pad_token_id", None)
    return stops.new_tensor(pad) if isinstance(pad, int) else stops[0] if len(stops) else None


def _chosen(scores: Tensor, random: torch.Generator | None) -> Tensor:
    if random is None:
        return scores.argmax(-1)
    return torch.multinomial(scores.softmax(-1).cpu(), 1, generator=random).squeeze(1).to(scores.device)


register(
    Method(
        "interp.vision.contrast",
        number="scores of tokens: (1 + amount) log p of one branch less amount log p of the other",
        shown="none",
        unfit={"vit": "it says no tokens", "encoder-decoder": "prompt and answer are two sequences"},
        passes=lambda t: 2,
        values=None,
        example=lambda t: contrast(t.model, t.base, against_edits=[MaskKeys(t.heads, keys="first")]).scores(),
    )
)
