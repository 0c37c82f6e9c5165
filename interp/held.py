"""A module that is held: its processor, its anatomy, its checks, and what is on it now.

Nothing here moves, casts, merges or dequantises it or switches it to eval mode. What is where is found on first use in
a traced call (`hooks/survey/trace.py`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from inspect import signature
from typing import Any, Literal

import torch

from interp.hooks.anatomy.family import Family, family_of
from interp.hooks.anatomy.refusals import refuse
from interp.hooks.anatomy.spread import divided
from interp.hooks.anatomy.towers import Anatomy
from interp.hooks.anatomy.unwrap import Unwrapped, forced_eager
from interp.hooks.denoisers.calls import denoises
from interp.hooks.drive.blocks import Blocks
from interp.hooks.drive.recording import CannotDrive
from interp.hooks.errors import InputsError, UnknownPositions
from interp.hooks.examples.example import example, first_argument, moved
from interp.hooks.examples.joined import STOPS
from interp.hooks.html import Told
from interp.hooks.inputs.denoised import counted, denoised
from interp.hooks.inputs.inputs import Inputs
from interp.hooks.inputs.roles import Roles
from interp.hooks.inputs.sound import extractor_of
from interp.hooks.inputs.unmapped import completed, lacking, mapped, untold
from interp.hooks.pictures.grids import Patches, patches_of
from interp.hooks.run.session import Session
from interp.hooks.survey.capabilities import Capabilities, Capability, capabilities
from interp.hooks.survey.checks import Report, check
from interp.hooks.survey.lengths import Size, lengths
from interp.hooks.survey.order import order
from interp.hooks.survey.trace import traced
from interp.preparing.prepare import prepare, tokenizer_of

BEFORE = "they are seen in a run that nothing is on: call m.inputs(...) with a call of these shapes before"
"""What to do where the positions of a tower are asked for the first time while the model runs."""


class Held(Told):
    """A module with its processor and what was found out about it: the base of `Model`."""

    def __init__(
        self, unwrapped: Unwrapped, processor: Any, *, family: Family | None, inputs: Mapping[str, Any] | None
    ) -> None:
        self.module = unwrapped.module
        self.how = unwrapped.how
        self.processor = processor if processor is not None else unwrapped.processor
        self.family = family or unwrapped.family or family_of(self.module)
        self._example = inputs
        self._made_up: dict[torch.dtype, Mapping[str, Any]] = {}
        self._anatomy: Anatomy | None = None
        self._report: Report | None = None
        self._sizes: dict[tuple[Any, ...], dict[str, Size]] = {}
        self._order: list[Patches | None] = []
        self._sessions: list[Session] = []
        self._lock = threading.RLock()

    def __repr__(self) -> str:
        known = (
            "\n".join(f"  {line}" for line in str(self._anatomy).splitlines()) if self._anatomy else "  not traced yet"
        )
        return f"Model of {type(self.module).__name__}{self.how}\n{known}"

    @property
    def config(self) -> Any:
        """The module's config."""
        return getattr(self.module, "config", None)

    @property
    def tokenizer(self) -> Any:
        """The tokenizer in or as the processor."""
        return getattr(self.processor, "tokenizer", self.processor)

    @property
    def device(self) -> torch.device:
        """Where inputs go: the device of the first parameter that is anywhere."""
        real = (p.device for p in self.module.parameters() if p.device.type != "meta")
        return next(real, torch.device("cpu"))

    @property
    def dtype(self) -> torch.dtype:
        """What the model computes in: the dtype of its first floating parameter."""
        return next((p.dtype for p in self.module.parameters() if p.is_floating_point()), torch.float32)

    @property
    def anatomy(self) -> Anatomy:
        """Towers, layers, heads and ports; traced on first use."""
        return self.discover()

    @property
    def towers(self) -> dict[str, Any]:
        """The towers by name."""
        return dict(self.anatomy.towers)

    def example(self) -> Mapping[str, Any]:
        """The inputs the model is traced and checked with: those given to `attach`, else made up from its config."""
        if self._example is not None:
            return self._example
        if self.dtype not in self._made_up:  # making them up may take passes
            self._made_up[self.dtype] = example(self.module)
        return self._made_up[self.dtype]

    def discover(self, inputs: Any = None) -> Anatomy:
        """Trace the model, once, or anew on given inputs, which are its example from then on (to find a tower that the
        first ones did not reach, or more passes of a loop)."""
        with self._lock:
            if self._anatomy is None or inputs is not None:
                refuse(self.module)
                kwargs = self.example() if inputs is None else self.inputs(inputs).kwargs
                self._example = self._example if inputs is None else kwargs
                with forced_eager():
                    self._anatomy, self.family = traced(self.module, self.called_with(kwargs), family=self.family)
                self._report = None
                self._sizes.clear()
                self._order.clear()
            return self._anatomy

    def sites(self, pattern: str = "L*.z") -> list[str]:
        """The sites a pattern means in this model."""
        return [str(site) for site in self.anatomy.sites(pattern)]

    def check(self, *, again: bool = False) -> Report:
        """Hold what the hook layer says against what the model does; printed as a table, run once on first use and
        cached where it passed: what failed may have failed for something that goes away."""
        with self._lock:
            if self._report is not None and not again:
                return self._report
            anatomy = self.anatomy
            with forced_eager():
                report = check(self.module, anatomy, self.called_with(self.example()), family=self.family)
            report = replace(report, ask=self._answered(anatomy))
            self._report = report if report.passed else None
            return report

    def _answered(self, anatomy: Anatomy) -> Callable[[], Capabilities]:
        """How to find out what can be done; at once where several processes have to take part, of which one prints."""
        if not divided(anatomy):
            return self.capabilities
        known = self.capabilities()
        return lambda: known

    def capabilities(self) -> Capabilities:
        """Whether recording, edits and gradients work with the model as it is held, by trying, and how it is swept;
        `m.check()` prints it."""
        kwargs = self.called_with(self.example())
        tried = capabilities(self.module, anatomy=self.anatomy, inputs=kwargs, family=self.family, how=self.how)
        return replace(tried, rows=(*tried.rows, self._sweep()))

    def _sweep(self) -> Capability:
        """A sweep runs the blocks of the main tower alone, and compares what they give with full passes."""
        anatomy = self.anatomy
        tower = anatomy.towers[anatomy.main or max(anatomy.towers, key=lambda name: len(anatomy.towers[name].layers))]
        try:
            Blocks(self.module, anatomy, tower, family=self.family)
        except CannotDrive as reason:
            return Capability("sweep", "yes", f"in full passes: {reason.reason}")
        return Capability("sweep", "yes", "runs the blocks alone, and says so where they give other numbers")

    def ready(self) -> Anatomy:
        """The anatomy of a model that can be trusted: in eval mode, traced, and with its checks passed."""
        refuse(self.module)
        anatomy = self.anatomy
        self.check().raise_failed()
        return anatomy

    def called_with(self, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of a forward pass, on the model's device."""
        device = self.device
        return {name: moved(value, device) for name, value in kwargs.items()}

    def inputs(self, inputs: Any) -> Inputs:
        """Anything that can be inputs, as `Inputs`."""
        if isinstance(inputs, Inputs):
            return self._completed(inputs, inputs.kwargs)
        if torch.is_tensor(inputs) and inputs.ndim == 4 and self.config is None:
            inputs = {first_argument(self.module): inputs}
        return self._describe(inputs) if isinstance(inputs, Mapping) else self.prepare(inputs)

    def _describe(self, kwargs: Mapping[str, Any]) -> Inputs:
        if denoises(self.module):
            try:
                return denoised(self.module, kwargs)
            except UnknownPositions as why:
                return self._watched(None, kwargs, why)
        config = self.config if self.config is not None else patches_of(self.module)
        extractor = extractor_of(self.processor)
        try:
            made = Inputs.of(kwargs, config=config, tokenizer=tokenizer_of(self.processor), extractor=extractor)
        except UnknownPositions as why:
            return self._watched(None, kwargs, why)
        return self._completed(made, kwargs)

    def _completed(self, made: Inputs, kwargs: Mapping[str, Any]) -> Inputs:
        """The inputs with the towers that they do not know, once the model has been traced."""
        if self._anatomy is None or made.main == "denoiser":
            return made
        if len(towers := list(self._anatomy.towers)) == 1 and towers[0] in made.towers and made.main == "decoder":
            made = replace(made, unnamed=towers[0])
        return self._watched(made, kwargs) if lacking(made, towers) else made

    def _watched(
        self, made: Inputs | None, kwargs: Mapping[str, Any], unknown: UnknownPositions | None = None
    ) -> Inputs:
        """What a call that is watched says of the towers that are not known. A call of the same shapes is not watched
        again, and nothing is run under a session, which would take part."""
        anatomy, call = self.anatomy, self.called_with(kwargs)
        shapes = tuple((name, tuple(x.shape)) for name, x in sorted(call.items()) if torch.is_tensor(x))
        if shapes not in self._sizes and self._sessions:
            if made is None:
                raise UnknownPositions(f"{unknown}; {BEFORE}") from unknown
            return untold(made, lacking(made, anatomy.towers), BEFORE)
        if shapes not in self._sizes:
            self._sizes[shapes] = self._lengths(call)
        sizes = self._sizes[shapes]
        if denoises(self.module):
            return counted(self.module, call, sizes)
        whole = completed(made, kwargs, sizes, max(anatomy.towers, key=lambda name: len(anatomy.towers[name].layers)))
        if "vision" not in sizes or "pixel_values" not in kwargs or "vision" not in lacking(made, sizes):
            return whole
        if not self._order and not self._sessions:
            self._order.append(order(self.module, anatomy, call))
        found = self._order[0] if self._order else None
        return whole if found is None else mapped(whole, found, sizes)

    def _lengths(self, call: Mapping[str, Any]) -> dict[str, Size]:
        try:
            return lengths(self.module, self.anatomy, call)
        except STOPS as why:
            raise InputsError(
                f"cannot tell the positions of a call with {', '.join(call)}: {type(self.module).__name__} does not run"
                f" on it: {why}"
            ) from why

    def prepare(
        self,
        given: Any = None,
        *,
        images: Any = None,
        videos: Any = None,
        audio: Any = None,
        chat: bool | Mapping[str, Any] | None = None,
        continuation: Any = None,
        padding: Literal["left", "right"] | None = None,
        language: str | Sequence[str] | None = None,
        task: str | None = None,
    ) -> Inputs:
        """Text, chat messages, ids, sound or a processor's output as frozen `Inputs`; see
        `interp/preparing/prepare.py`."""
        if denoises(self.module):
            raise InputsError(
                "a denoiser is called by its pipeline, step by step: with m.watch(record=...) as tape: pipe(prompt)."
                " One call of it is m.run({'hidden_states': ..., 'timestep': ..., ...})."
            )
        return prepare(
            self.module,
            self.processor,
            given,
            images=images,
            videos=videos,
            audio=audio,
            chat=chat,
            continuation=continuation,
            padding=padding,
            language=language,
            task=task,
            describe=self._describe,
        )

    def roles(self, inputs: Any) -> Roles:
        """What each token is: bos, text, image (index, row, column), pad, special, and so on."""
        return self.inputs(inputs).roles

    @contextmanager
    def on(self, session: Session) -> Iterator[None]:
        """A session on the model, listed in `handles()` while it lasts."""
        self._sessions.append(session)
        try:
            with session:
                yield
        finally:
            if session in self._sessions:
                self._sessions.remove(session)

    def last_logits_only(self) -> dict[str, int]:
        """The argument that keeps a model from computing logits nobody reads, where its forward has one."""
        return {"logits_to_keep": 1} if "logits_to_keep" in signature(self.module.forward).parameters else {}

    def handles(self) -> list[Session]:
        """Everything that is on the model now."""
        return list(self._sessions)

    def reset(self) -> None:
        """Take everything off, whoever left it there."""
        while self._sessions:
            self._sessions.pop().close()
