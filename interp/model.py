"""A model one can look into: a module, its processor, and what was found out about its attention.

`attach` takes a model that you hold and never moves, casts, merges, dequantises it or switches it to eval mode; `load`
reads one from the hub, a local directory or the zoo. What is where is found on first use in a traced call
(`hooks/survey/trace.py`).
"""

from __future__ import annotations

import shutil
import threading
import weakref
from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from inspect import signature
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from interp.hooks.anatomy.example import example
from interp.hooks.anatomy.family import Family, family_of
from interp.hooks.anatomy.refusals import refuse
from interp.hooks.anatomy.towers import Anatomy
from interp.hooks.anatomy.unwrap import Unwrapped, forced_eager, unwrap
from interp.hooks.edits.edits import Edit
from interp.hooks.errors import BudgetError, InputsError, ModelError
from interp.hooks.inputs.inputs import Inputs, Positions
from interp.hooks.inputs.roles import Roles
from interp.hooks.run.session import Session, Wish
from interp.hooks.run.shelf import Shelf
from interp.hooks.run.size import estimate, free_memory
from interp.hooks.run.tape import Tape
from interp.hooks.sites import Site
from interp.hooks.survey.checks import Report, check

if TYPE_CHECKING:
    from interp.hooks.survey.capabilities import Table

_KNOWN: weakref.WeakValueDictionary[int, Model] = weakref.WeakValueDictionary()
"""By the module's id, which cannot be taken by another one while the Model holds the module."""
_LOCK = threading.RLock()

Record = str | Site | Iterable[str | Site]
Store = Literal["device", "cpu"] | str | Path


class Model:
    """A module with its processor and its towers. Made by `attach` or `load`, printable, undone by `reset`."""

    def __init__(
        self, unwrapped: Unwrapped, processor: Any, *, family: Family | None, inputs: Mapping[str, Any] | None
    ) -> None:
        self.module = unwrapped.module
        self.how = unwrapped.how
        self.processor = processor if processor is not None else unwrapped.processor
        self.family = family or unwrapped.family or family_of(self.module)
        self._example = inputs
        self._anatomy: Anatomy | None = None
        self._report: Report | None = None
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
        return self._example if self._example is not None else example(self.module)

    def discover(self, inputs: Any = None) -> Anatomy:
        """Trace the model, once, or anew on given inputs (to find a tower the first ones did not reach)."""
        from interp.hooks.survey.trace import trace

        with self._lock:
            if self._anatomy is None or inputs is not None:
                refuse(self.module)
                kwargs = self.example() if inputs is None else self.inputs(inputs).kwargs
                with forced_eager():
                    self._anatomy = trace(self.module, self.called_with(kwargs), family=self.family)
                self._report = None
            return self._anatomy

    def sites(self, pattern: str = "L*.z") -> list[str]:
        """The sites a pattern means in this model."""
        return [str(site) for site in self.anatomy.sites(pattern)]

    def check(self, *, again: bool = False) -> Report:
        """Hold what the hook layer says against what the model does; printed as a table, cached, run once on first
        use."""
        if self._report is None or again:
            anatomy = self.anatomy
            with forced_eager():
                report = check(self.module, anatomy, self.called_with(self.example()), family=self.family)
            self._report = replace(report, ask=self.capabilities)
        return self._report

    def capabilities(self) -> Table:
        """Whether recording, edits and gradients work with the model as it is held, by trying; `m.check()` prints
        it."""
        from interp.hooks.survey.capabilities import capabilities

        kwargs = self.called_with(self.example())
        return capabilities(self.module, anatomy=self.anatomy, inputs=kwargs, family=self.family, how=self.how)

    def ready(self) -> Anatomy:
        """The anatomy of a model that can be trusted: in eval mode, traced, and with its checks passed."""
        refuse(self.module)
        anatomy = self.anatomy
        self.check().raise_failed()
        return anatomy

    def called_with(self, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of a forward pass, on the model's device."""
        device = self.device
        return {name: value.to(device) if torch.is_tensor(value) else value for name, value in kwargs.items()}

    def inputs(self, inputs: Any) -> Inputs:
        """Whatever stands for inputs, as `Inputs`."""
        if isinstance(inputs, Inputs):
            return inputs
        return self._describe(inputs) if isinstance(inputs, Mapping) else self.prepare(inputs)

    def _describe(self, kwargs: Mapping[str, Any]) -> Inputs:
        return Inputs.of(kwargs, config=self.config, tokenizer=self.tokenizer)

    def prepare(
        self,
        given: Any,
        *,
        images: Any = None,
        videos: Any = None,
        audio: Any = None,
        chat: bool | None = None,
        continuation: Any = None,
        padding: Literal["left", "right"] | None = None,
    ) -> Inputs:
        """Text, chat messages, ids or a processor's output as frozen `Inputs`; see `interp/preparing/prepare.py`."""
        from interp.preparing.prepare import prepare

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
        )

    def roles(self, inputs: Any) -> Roles:
        """What each token is: bos, text, image (index, row, column), pad, special, and so on."""
        return self.inputs(inputs).roles

    def run(
        self,
        inputs: Any,
        *,
        record: Record = (),
        edits: Iterable[Edit] = (),
        positions: Positions | None = None,
        keys: Positions | None = None,
        grad: bool = False,
        store: Store = "device",
        dtype: torch.dtype | None = None,
        budget: int | None = None,
        source_model: Model | None = None,
    ) -> Tape:
        """One forward pass with edits; the tape holds the logits and what was asked for.

        `positions` are those recorded (of patterns: the query rows), `keys` the key columns of patterns. `store` is
        where recordings go: the model's device, "cpu", or a directory (which `interp.open` reads). `budget` bounds
        them in bytes (half of what is free unless said); they are estimated first. `source_model` runs that model
        instead and records it under this model's sites.
        """
        if source_model is not None:
            return self._source(source_model).run(
                inputs,
                record=record,
                edits=edits,
                positions=positions,
                keys=keys,
                grad=grad,
                store=store,
                dtype=dtype,
                budget=budget,
            )
        anatomy = self.ready()
        x = self.inputs(inputs)
        sites = _wanted(anatomy, record)
        wish = _wish(sites, positions=positions, keys=keys, grad=grad, store=store, dtype=dtype, budget=budget)
        _within(wish, estimate(anatomy, wish, x, dtype=self.dtype))
        session = Session(self.module, anatomy, edits=edits, wish=wish, inputs=x, family=self.family)
        with self.on(session), torch.enable_grad() if grad else torch.no_grad():
            output = self.module(**self.called_with(x.kwargs))
        session.check_fired()
        tape = Tape(anatomy, x, self._with_logits(session.recorded(), output, wish), meta=self._meta(x))
        if isinstance(wish.shelf, Shelf):
            tape.save(wish.shelf.folder)
        return tape

    def _source(self, other: Model) -> Model:
        mine, theirs = self.anatomy, other.anatomy
        if str(mine) != str(theirs):
            raise ModelError(
                f"source_model has other towers than this model, so sites do not mean the same:\n{mine}\n---\n{theirs}"
            )
        return other

    @staticmethod
    def _with_logits(shelf: MutableMapping[Site, Tensor], output: Any, wish: Wish) -> MutableMapping[Site, Tensor]:
        from interp.hooks.stand.output import logits_of

        logits = logits_of(output)
        if logits is not None and Site(None, None, "logits") not in shelf:
            shelf[Site(None, None, "logits")] = logits if wish.grad else logits.detach()
        return shelf

    def _meta(self, x: Inputs) -> dict[str, Any]:
        from interp.provenance import about

        return about(self.module, x)

    def stream(self, dataset: Iterable[Any], *, record: Record, batch: int = 16, **how: Any) -> Iterator[Tape]:
        """One tape per batch of a dataset of texts (or of whatever `prepare` takes), each forgotten before the next."""
        waiting = iter(dataset)
        while some := list(islice(waiting, batch)):
            if isinstance(some[0], Inputs):
                yield from (self.run(x, record=record, **how) for x in some)
            else:
                yield self.run(some, record=record, **how)

    @contextmanager
    def edited(self, edits: Iterable[Edit]) -> Iterator[Session]:
        """While inside, any code that calls the module runs with the edits, in every thread; contexts nest."""
        anatomy = self.ready()
        session = Session(
            self.module, anatomy, edits=edits, family=self.family, all_threads=True, describe=self._describe
        )
        with self.on(session):
            yield session
        if session.ran:
            session.check_fired()

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

    def generate(
        self,
        inputs: Any,
        *,
        edits: Iterable[Edit] = (),
        phase: Literal["prefill", "decode", "both"] | None = None,
        max_new_tokens: int = 20,
        **how: Any,
    ) -> Any:
        """Generate with a KV cache under edits; see `interp/generate.py`."""
        from interp.generate import generate

        return generate(self, inputs, edits=edits, phase=phase, max_new_tokens=max_new_tokens, **how)

    def attention(self, inputs: Any, **how: Any) -> Any:
        """Statistics of how heads attend, at any length, without N x N; see `interp/attention.py`."""
        from interp.attention import attention

        return attention(self, inputs, **how)

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


def attach(
    module: Any, processor: Any = None, *, family: Family | None = None, example: Mapping[str, Any] | None = None
) -> Model:
    """A model that you hold: an HF model, a TransformerLens bridge, an nnsight model, a compiled one, or any module.

    Attaching twice gives the same Model. `family` says where the heads are in a model outside transformers' attention
    interface, `example` gives keyword arguments for one forward pass where none can be made up from the config.
    """
    unwrapped = unwrap(module)
    with _LOCK:
        known = _KNOWN.get(id(unwrapped.module))
        if (
            known is not None
            and (processor is None or processor is known.processor)
            and family in (None, known.family)
            and example is None
        ):
            return known
        model = Model(
            unwrapped,
            processor if processor is not None else known.processor if known else None,
            family=family,
            inputs=example,
        )
        _KNOWN[id(unwrapped.module)] = model
        return model


def _wanted(anatomy: Anatomy, record: Record) -> list[Site]:
    listed = [record] if isinstance(record, (str, Site)) else list(record)
    sites = [site for spelled in listed for site in anatomy.sites(spelled)]
    for site in sites:
        if site.component == "attention":
            raise InputsError(
                f"{str(site)!r} names heads but not what to record: write '{site}.z' or '{site}.pattern'."
            )
    return list(dict.fromkeys(sites))


def _wish(
    sites: Sequence[Site],
    *,
    positions: Positions | None,
    keys: Positions | None,
    grad: bool,
    store: Store,
    dtype: torch.dtype | None,
    budget: int | None,
) -> Wish:
    if grad and (positions is not None or store != "device" or dtype is not None):
        raise InputsError(
            "grad=True keeps the tensors the model itself goes on with: leave out positions=, store= and dtype=,"
            " and select from the gradients afterwards."
        )
    shelf: MutableMapping[Site, Tensor] = {} if store in ("device", "cpu") else Shelf(store)
    free = shutil.disk_usage(shelf.folder).free if isinstance(shelf, Shelf) else free_memory()
    limit = budget if budget is not None else free // 2
    return Wish(sites, positions, keys, grad, dtype, shelf, store != "device", limit)


def _within(wish: Wish, needed: int) -> None:
    if wish.budget is not None and needed > wish.budget:
        raise BudgetError(
            f"recording {len(wish.sites)} sites of these inputs takes about {needed / 2**20:.0f} MiB, more than the"
            f" {wish.budget / 2**20:.0f} MiB allowed:"
            " ask for fewer sites, heads or positions, store them in a directory, or pass a larger"
            " budget=."
        )
