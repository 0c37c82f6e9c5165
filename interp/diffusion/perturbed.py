"""What the picture becomes when it is led away from what chosen heads make of looking at themselves alone?

Perturbed attention guidance, per head and by degrees (SoftPAG, arXiv 2506.10978): in addition to every sample that is
guided by the prompt runs one whose chosen heads attend by (1 - amount) A + amount I (`interp.edits.SoftIdentity`), in
the same call of the denoiser, and with e what it gives

    e <- e + weight (e_cond - e_perturbed)    for every branch of the sample,

which is e_u + g (e_c - e_u) + weight (e_c - e_p) once the pipeline has applied its own guidance g, as diffusers' PAG
pipelines have it. The rows are taken off again before the pipeline sees them. Cost: a row more for each sample in every
call of `steps`, half the work again under guidance in one batch, twice without. Limits: self-attention; pipelines that
perturb by themselves, or call the denoiser without the prompt first, are refused; the paper's values of amount and
weight are not known, ours are 1 and 3.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.diffusion.denoiser import NOT_HERE, refuse_other
from interp.hooks.denoisers.guidance import branches, said
from interp.hooks.denoisers.layout import joint
from interp.hooks.edits.edits import in_steps
from interp.hooks.edits.perturb import SoftIdentity
from interp.hooks.errors import InputsError, ModelError
from interp.hooks.sites import Site
from interp.hooks.stand.output import logits_key, with_logits
from interp.records import Method, register

if TYPE_CHECKING:
    from interp.model import Model

WITHOUT_ROWS = ("img_ids", "txt_ids")
"""Arguments of the sequence, not of the batch."""


@contextmanager
def perturbed(
    model: Model,
    heads: str | Iterable[str],
    *,
    amount: float = 1.0,
    weight: float = 3.0,
    steps: int | str | None = None,
) -> Iterator[Perturbing]:
    """While inside, calls of the denoiser are guided away from `heads` ("L3.H1", "L2-5.H*", or several) looking at
    themselves."""
    refuse_other(model)
    patterns = [heads] if isinstance(heads, str) else list(heads)
    if not patterns:
        raise InputsError("name at least one head to perturb, such as 'L3.H1'.")
    anatomy = model.ready()
    sites = list(dict.fromkeys(site for one in patterns for site in anatomy.sites(_attention(one))))
    crossed = [str(site) for site in sites if anatomy.layer(site).kind == "cross"]
    if crossed:
        raise InputsError(
            f"{crossed[0]} is cross-attention from cells to words: only heads of self-attention can be perturbed,"
            " since each token has its own key there."
        )
    in_steps(steps, 0)
    edits = [
        SoftIdentity(_attending(site), amount, "text" if joint(model.module) else None, branch="perturbed")
        for site in sites
    ]
    doing = Perturbing(model, weight, steps)
    with ExitStack() as undo:
        undo.enter_context(model.edited(edits))
        doing.on(undo)
        yield doing


def _attention(pattern: str) -> str:
    return pattern.removesuffix(".attention") if pattern.endswith(".z") else f"{pattern.removesuffix('.attention')}.z"


def _attending(site: Site) -> str:
    """The heads of a site as an edit of attention names them."""
    return str(replace(site, component="attention"))


@dataclass(eq=False)
class Perturbing:
    """The edits on a denoiser while it is guided so."""

    model: Model
    """The denoiser that is guided."""
    weight: float
    """How strong the guidance is: the difference from the perturbed row is added so many times."""
    steps: int | str | None
    """The calls of the denoiser that are guided, counted from 0: 3, or "0-4,10". None for all."""
    calls: int = 0
    """Calls that rows were added to."""
    _seen: int = 0
    _rows: tuple[str, ...] = ()
    _added: int = 0
    _kept: Tensor | None = None
    _said: ExitStack = field(default_factory=ExitStack)

    def on(self, undo: ExitStack) -> None:
        """Add rows before everybody else looks, take them off after."""
        module = self.model.module
        undo.callback(self._said.close)
        undo.callback(module.register_forward_pre_hook(self._before, with_kwargs=True, prepend=True).remove)
        undo.callback(module.register_forward_hook(self._after).remove)

    def _before(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        call = {"hidden_states": args[0], **kwargs} if args else kwargs
        rows, step = branches(module, call), self._seen
        self._seen, self._rows, self._added = step + 1, rows, 0
        if "cond" in rows:
            self._kept = None  # what an earlier step kept was for that step
        if "perturbed" in rows:
            raise ModelError("this pipeline already perturbs attention: use the plain pipeline.")
        if not in_steps(self.steps, step):
            return None
        if "cond" not in rows:
            if self._kept is None:
                raise ModelError(
                    "the pipeline calls the denoiser first without the prompt and then with it. The guidance needs the"
                    " call with the prompt first, so this pipeline is not supported."
                )
            return None
        taken = [n for n, branch in enumerate(rows) if branch == "cond"]
        self._added = len(taken)
        self.calls += 1
        self._said.enter_context(said((*rows, *["perturbed"] * len(taken))))
        count = len(rows)
        new = tuple(_more(value, taken, count) for value in args)
        named = {n: value if n in WITHOUT_ROWS else _more(value, taken, count) for n, value in kwargs.items()}
        return new, named

    def _after(self, module: Any, args: Any, output: Any) -> Any:
        key = logits_key(output)
        e: Tensor = output if key is None else output[key] if isinstance(key, int) else getattr(output, key)
        if self._added:
            self._said.close()
            e, lost = e[: -self._added], e[-self._added :]
            cond = e[[n for n, branch in enumerate(self._rows) if branch == "cond"]]
            self._kept = self.weight * (cond - lost)
        elif self._kept is None:
            return None
        delta = self._kept
        assert delta is not None
        if "uncond" in self._rows and "cond" not in self._rows:
            self._kept = None
        return with_logits(output, key, e + delta.repeat(len(e) // len(delta), *[1] * (e.ndim - 1)))


def _more(value: Any, taken: list[int], count: int) -> Any:
    """What an argument says of a batch, with some of its rows once more."""
    if torch.is_tensor(value):
        return torch.cat([value, value[taken]]) if value.ndim and len(value) == count else value
    if isinstance(value, Mapping):
        return {name: _more(one, taken, count) for name, one in value.items()}
    if isinstance(value, list) and len(value) == count:
        return [*value, *(value[n] for n in taken)]
    return value


def _example(t: Any, **how: Any) -> Any:
    with perturbed(t.model, t.heads, **how):
        return t.model.run(t.base)


register(
    Method(
        name="interp.diffusion.perturbed",
        number="none: a context in which a pipeline samples under guidance",
        example=_example,
        passes=lambda t: 0,
        shown="none",
        values=None,
        unfit=NOT_HERE,
    )
)
