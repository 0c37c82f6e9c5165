"""What a model answers with while a metric reads another place than its logits.

Engines ask what a model returns for its answer (`logits_of`). Inside `answering(...)` that is the tensor at a site, or
one that the model returns in addition to its hidden states (`pooler_output`): with its graph, and after every edit of
the run, since the look at it is put on last, when the pass begins. It holds for the thread that entered and for the
innermost such context only; a pass in which the place does not run exactly once is an error. Cost: none. Limits: one
tensor, [row, position, d] or [row, d]; heads are laid side by side.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from interp.hooks.anatomy.family import Family
from interp.hooks.anatomy.towers import Anatomy
from interp.hooks.errors import ModelError, SiteError
from interp.hooks.passes import Count
from interp.hooks.run.keeper import Wish
from interp.hooks.run.session import Session
from interp.hooks.sites import HEAD, KV, LAYER, Site
from interp.hooks.stand.output import AnswerPlace, answer_of, answers

OUTPUTS = ("pooler_output", "text_embeds", "image_embeds")
"""What models return in addition to hidden states: one vector a row."""
BY_POSITION = LAYER | {"embed", "final_norm", "q", "k", "v", "z"}


@dataclass(frozen=True, eq=False)
class Answered:
    """What the model is taken to have returned."""

    logits: Tensor


@contextmanager
def answering(module: nn.Module, anatomy: Anatomy, name: str | None, *, family: Family | None = None) -> Iterator[None]:
    """While inside, the module's answer is the value at `name`; its logits again where that is None."""
    now, stack = answer_of(module), answers()
    if name == (None if now is None else now.name) == (stack[-1].name if stack else None):
        yield
        return
    answer = AnswerPlace(module, name, None if name in (None, *OUTPUTS) else place(anatomy, str(name)))
    stand = _Stand(answer, anatomy, family)
    stack.append(answer)
    try:
        with stand:
            yield
    finally:
        stack.remove(answer)


def place(anatomy: Anatomy, name: str) -> Site:
    """The one site that is read. `final_norm` of a tower that ends without a norm of its own, since its blocks end with
    theirs (BERT), is what the last block gives."""
    site = anatomy.one(name)
    if site.component not in BY_POSITION:
        known = ", ".join(sorted(BY_POSITION))
        raise SiteError(f"a metric reads numbers by position, {known}, or {', '.join(OUTPUTS)}; got {name!r}.")
    tower = anatomy.tower(site.tower, text=name)
    if site.component == "final_norm" and tower.final_norm is None:
        return Site(site.tower, tower.layers[-1].index, "resid_post")
    return site


def ends(anatomy: Anatomy, answer: AnswerPlace | None) -> bool:
    """Whether an answer is made from what the last block gives, so that blocks may be run without the rest."""
    if answer is None or answer.site is None or answer.site.component == "final_norm":
        return True
    tower = anatomy.tower(answer.site.tower, text=str(answer.site))
    return answer.site == Site(answer.site.tower, tower.layers[-1].index, "resid_post")


def _by_position(value: Tensor, site: Site | None) -> Tensor:
    """[row, position, d] of the value at a site: heads in one axis, a map of places (SAM) one after the other, and one
    row where a model packs its pictures into one (Qwen-VL)."""
    if site is None:
        return value
    if value.ndim == 4:
        return value.flatten(2) if site.component in HEAD | KV else value.flatten(1, 2)
    return value[None] if value.ndim == 2 else value


class _Stand:
    """The hooks on the module that look and answer."""

    def __init__(self, answer: AnswerPlace, anatomy: Anatomy, family: Family | None) -> None:
        self.answer, self.anatomy, self.family = answer, anatomy, family
        self.thread = threading.get_ident()
        self.session: Session | None = None
        self.handles: list[Any] = []
        self.uncount: Callable[[], None] = lambda: None

    def __enter__(self) -> _Stand:
        root, site = self.answer.module, self.answer.site
        layer = None if site is None or site.layer is None else self.anatomy.layer(site)
        if layer is not None and layer.nth is not None:  # counted from before the pass begins, when the look is put on
            self.uncount = Count.watch(root, layer.nth, self._mine)[1]
        if self.answer.name is not None:
            self.handles.append(root.register_forward_pre_hook(self._begins, with_kwargs=True))
            self.handles.append(root.register_forward_hook(self._ends))
        return self

    def __exit__(self, *_: object) -> None:
        self._off()
        self.uncount()
        for handle in self.handles:
            handle.remove()

    def _mine(self) -> bool:
        return threading.get_ident() == self.thread and answer_of(self.answer.module) is self.answer

    def _off(self) -> list[Tensor]:
        """Take the look off; what it saw."""
        session, self.session = self.session, None
        if session is None or self.answer.site is None:
            return []
        session.close()
        return session.pieces.get(self.answer.site, [])

    def _begins(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        if not self._mine():
            return
        self._off()
        if self.answer.site is not None:
            wish = Wish([self.answer.site], grad=torch.is_grad_enabled())
            self.session = Session(module, self.anatomy, wish=wish, family=self.family)
            self.session.__enter__()
            self.session.moment.begin(args, kwargs)

    def _ends(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Answered | None:
        if not self._mine():
            return None
        return Answered(self._value(self._off(), output))

    def _value(self, seen: list[Tensor], output: Any) -> Tensor:
        name = self.answer.name
        found = seen if self.answer.site is not None else [getattr(output, str(name), None)]
        if len(found) != 1 or found[0] is None:
            raise ModelError(
                f"the metric reads {name!r}, which {type(self.answer.module).__name__} has {len(seen)} times in one"
                " pass on these inputs: it takes a place that is there exactly once."
            )
        value = _by_position(found[0], self.answer.site)
        if value.ndim not in (2, 3) or (self.answer.site is None and value.ndim != 2):
            raise ModelError(f"the metric reads {name!r}, and that is {list(value.shape)} here, not a vector a place.")
        return value
