"""Any loop around a model, watched: decoding, denoising, unmasking, or code of which only the model is known.

A step is one call of the whole model since the context began, counted from 0, whoever calls it (a scheduler's numbers
are its own). Recordings have a step axis: `tape["L3.z"]` is [step, batch, position, head, d], `tape.at(4)` one call.
`steps="0-4,10"` says which calls are kept, `reduce=` makes of each call what is kept of it, so that memory does not
grow with the loop; edits take `steps=` as well. Cost: that of the loop. Limits: calls of this thread; a loop that calls
two models, or one model for two branches, is one sequence of calls here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from interp.held import Held
from interp.hooks.edits.edits import Edit, in_steps, last_of
from interp.hooks.errors import InputsError, NotFired
from interp.hooks.html import Told
from interp.hooks.run.keeper import Wish, joined
from interp.hooks.run.session import Session
from interp.hooks.run.size import free_memory
from interp.hooks.sites import Site

Reduce = Callable[[int, Mapping[Site, Tensor]], Any]


@dataclass(eq=False)
class Watched(Told):
    """What the calls of a loop recorded."""

    sites: tuple[Site, ...]
    """The sites that were recorded."""
    calls: int = 0
    """How often the model was called."""
    kept: dict[int, Any] = field(default_factory=dict)
    """By step: values by site, or what `reduce` made of them."""
    branches: dict[int, tuple[str, ...]] = field(default_factory=dict)
    """By step, which branch of a denoiser's guidance each row is: `cond`, `uncond`, `perturbed`."""
    one: Callable[[str | Site], Site] = field(default=lambda spelled: Site(None, None, str(spelled)), repr=False)
    """Gives the one site that a text means; `tape[...]` uses it."""

    aside: Callable[[], AbstractContextManager[None]] = field(default=nullcontext, repr=False)
    """`with tape.aside(): ...`: calls of the model inside are no steps, and are not recorded or edited."""

    @property
    def steps(self) -> tuple[int, ...]:
        """The steps that were kept."""
        return tuple(self.kept)

    def at(self, step: int) -> Any:
        """What was kept of one call."""
        if step not in self.kept:
            raise InputsError(f"step {step} was not kept; there are {list(self.kept)} of {self.calls} calls.")
        return self.kept[step]

    def __getitem__(self, spelled: str | Site) -> Tensor:
        """A site over all steps that were kept, [step, ...], where every call gave the same shape."""
        site = self.one(spelled)
        if any(not isinstance(value, Mapping) or site not in value for value in self.kept.values()):
            raise InputsError(f"{site} was reduced or not kept: read .at(step), or .kept.")
        values = [value[site] for value in self.kept.values()]
        if len({value.shape for value in values}) > 1:
            shapes = ", ".join(f"{step}: {list(v.shape)}" for step, v in zip(self.kept, values, strict=True))
            raise InputsError(f"{site} has another shape in other steps ({shapes}): read .at(step)[{str(site)!r}].")
        return torch.stack(values)

    def __repr__(self) -> str:
        return f"Watched({len(self.kept)} of {self.calls} calls, {len(self.sites)} sites)"


@contextmanager
def watch(
    model: Held,
    *,
    record: Iterable[str | Site] | str | Site = (),
    edits: Edit | Iterable[Edit] = (),
    steps: int | str | None = None,
    reduce: Reduce | None = None,
    store: str = "cpu",
    budget: int | None = None,
) -> Iterator[Watched]:
    """While inside, every call of the module by this thread is a step; see the module."""
    if store not in ("cpu", "device"):
        raise InputsError(f"store is 'cpu' or 'device', got {store!r}.")
    in_steps(steps, 0)
    anatomy = model.ready()
    spelled = [record] if isinstance(record, (str, Site)) else list(record)
    sites = list(dict.fromkeys(site for one in spelled for site in anatomy.sites(one)))
    wish = Wish(sites, cpu=store == "cpu", budget=free_memory() // 2 if budget is None else budget, steps=steps)
    session = Session(model.module, anatomy, edits=edits, wish=wish, family=model.family, describe=model.inputs)
    tape = Watched(tuple(sites), one=anatomy.one, aside=session.aside)

    def ended(*_: Any) -> None:
        if session.live():
            _keep(tape, session, reduce)

    with ExitStack() as undo:
        undo.enter_context(model.on(session))
        undo.callback(model.module.register_forward_hook(ended).remove)
        yield tape
    if not tape.calls:
        raise NotFired("the model was never called inside watch(...): is it this model that the loop calls?")
    if steps is not None and (last := last_of(steps)) >= tape.calls:
        raise NotFired(f"steps={steps!r} asks for call {last} of the model, and there were {tape.calls}, from 0 on.")
    session.check_fired()


def _keep(tape: Watched, session: Session, reduce: Reduce | None) -> None:
    """Take what this call recorded off the session."""
    step, tape.calls = tape.calls, tape.calls + 1
    if not session.keeper.wanted:
        return
    if session.moment.guidance is not None:
        tape.branches[step] = session.moment.branches
    values = {site: _whole(site, session.pieces.pop(site)) for site in tape.sites if site in session.pieces}
    if missing := [str(site) for site in tape.sites if site not in values]:
        raise NotFired(f"asked to record {missing[0]}, but it did not run in step {step}.")
    if reduce is None:
        tape.kept[step] = values
        return
    tape.kept[step] = reduce(step, values)
    session.keeper.bytes -= sum(x.numel() * x.element_size() for x in values.values())


def _whole(site: Site, parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else joined(site, parts)
