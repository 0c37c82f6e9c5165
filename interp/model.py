"""A model one can look into: a module, its processor, and what was found out about its attention.

`attach` takes a model that is loaded already and never moves, casts, merges, dequantises it or switches it to eval
mode; `load` reads one from the hub, a local directory or the zoo. What is where is found on first use in a traced call
(`hooks/survey/trace.py`).
"""

from __future__ import annotations

import shutil
import threading
import weakref
from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from interp.attention import attention
from interp.generate import generate
from interp.held import Held
from interp.hooks.anatomy.family import Family
from interp.hooks.anatomy.spread import divided
from interp.hooks.anatomy.towers import Anatomy
from interp.hooks.anatomy.unwrap import unwrap
from interp.hooks.edits.edits import Edit
from interp.hooks.errors import BudgetError, InputsError, ModelError
from interp.hooks.inputs.inputs import Inputs, Positions
from interp.hooks.run.keeper import Wish
from interp.hooks.run.session import Session
from interp.hooks.run.shelf import Shelf
from interp.hooks.run.size import estimate, free_memory
from interp.hooks.run.tape import Tape
from interp.hooks.sites import Site
from interp.hooks.stand.output import logits_of
from interp.provenance import about
from interp.watching import Watched, watch

_KNOWN: weakref.WeakValueDictionary[int, Model] = weakref.WeakValueDictionary()
"""By the module's id, which cannot be taken by another one while the Model holds the module."""
_LOCK = threading.RLock()

Record = str | Site | Iterable[str | Site]
Store = Literal["device", "cpu"] | str | Path


class Model(Held):
    """A module with its processor and its towers. Made by `attach` or `load`, printable, undone by `reset`."""

    def run(
        self,
        inputs: Any,
        *,
        record: Record = (),
        edits: Edit | Iterable[Edit] = (),
        positions: Positions | None = None,
        keys: Positions | None = None,
        grad: bool = False,
        store: Store = "device",
        dtype: torch.dtype | None = None,
        budget: int | None = None,
        source_model: Model | None = None,
        gather: bool = True,
    ) -> Tape:
        """One forward pass with edits (one, or several); the tape holds the logits and what was asked for.

        `record` is one site or several; "*" is all there is but patterns, scores and results, which are asked for by
        name.
        `positions` are those recorded (of patterns: the query rows), `keys` the key columns of patterns. `store` is
        where recordings go: the model's device, "cpu", or a directory (which `interp.open` reads). `budget` bounds
        them in bytes (half of what is free unless said); they are estimated first. `source_model` runs that model
        instead and records it under this model's sites. Where heads are in several processes each gets all of them;
        with `gather=False` its own, under their names (`tape.gathered()` puts them together later).
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
                gather=gather,
            )
        anatomy = self.ready()
        x = self.inputs(inputs)
        sites = _wanted(anatomy, record)
        _refuse_one_folder(anatomy, store)
        wish = _wish(sites, positions=positions, keys=keys, grad=grad, store=store, dtype=dtype, budget=budget)
        wish.gather = gather or grad
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
        logits = logits_of(output)
        if logits is not None and Site(None, None, "logits") not in shelf:
            shelf[Site(None, None, "logits")] = logits if wish.grad else logits.detach()
        return shelf

    def _meta(self, x: Inputs) -> dict[str, Any]:
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
    def edited(self, edits: Edit | Iterable[Edit]) -> Iterator[Session]:
        """While inside, any code that calls the module runs with the edits, in every thread; contexts nest."""
        anatomy = self.ready()
        session = Session(
            self.module, anatomy, edits=edits, family=self.family, all_threads=True, describe=self._describe
        )
        with self.on(session):
            yield session
        if session.ran:
            session.check_fired()

    def watch(self, **how: Any) -> AbstractContextManager[Watched]:
        """While inside, every call of the module by any code is a step that is recorded and edited; see
        `interp/watching.py`."""
        return watch(self, **how)

    def generate(
        self,
        inputs: Any,
        *,
        edits: Edit | Iterable[Edit] = (),
        phase: Literal["prefill", "decode", "both"] | None = None,
        max_new_tokens: int = 20,
        **how: Any,
    ) -> Any:
        """Generate with a KV cache under edits; see `interp/generate.py`."""
        return generate(self, inputs, edits=edits, phase=phase, max_new_tokens=max_new_tokens, **how)

    def attention(self, inputs: Any, **how: Any) -> Any:
        """Statistics of how heads attend, at any length, without N x N; see `interp/attention.py`."""
        return attention(self, inputs, **how)


def attach(
    module: Any, processor: Any = None, *, family: Family | None = None, example: Mapping[str, Any] | None = None
) -> Model:
    """A model in memory: an HF model, a TransformerLens bridge, an nnsight model, a compiled one, or any module.

    Attaching twice gives the same Model. `family` says where the heads are in a model outside transformers' attention
    interface, `example` gives keyword arguments for one forward pass where none can be made up from the config.
    """
    unwrapped = unwrap(module)
    processor = unwrapped.processor if processor is None else processor
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
    if "*" in listed:
        listed = [*anatomy.all_sites(), *(one for one in listed if one != "*")]
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
            "grad=True keeps the tensors that the model computes with: leave out positions=, store= and dtype=, and"
            " select from the gradients afterwards."
        )
    shelf: MutableMapping[Site, Tensor] = {} if store in ("device", "cpu") else Shelf(store)
    free = shutil.disk_usage(shelf.folder).free if isinstance(shelf, Shelf) else free_memory()
    limit = budget if budget is not None else free // 2
    return Wish(sites, positions, keys, grad, dtype, shelf, store != "device", limit)


def _refuse_one_folder(anatomy: Anatomy, store: Store) -> None:
    if store not in ("device", "cpu") and divided(anatomy):
        raise InputsError(
            "the heads of this model are in several processes, each of which would write the same directory: store="
            "'cpu' and save the tape in one of them."
        )


def _within(wish: Wish, needed: int) -> None:
    if wish.budget is not None and needed > wish.budget:
        raise BudgetError(
            f"recording {len(wish.sites)} sites of these inputs takes about {needed / 2**20:.0f} MiB, more than the"
            f" {wish.budget / 2**20:.0f} MiB allowed:"
            " ask for fewer sites, heads or positions, store them in a directory, or pass a larger"
            " budget=."
        )
