"""What a method says about itself, once, in its own file: documentation, command line, reports and tests read it.

A file of a public call ends with `register(Method(...))`, a file behind one of its choices (`method="relp"`) with
`register(Variant(...))`. Sentences stay where they are: what a method asks, its papers, cost and limits are read from
the docstring of its file. Nothing is imported to know which files register: `every()` looks for the line that imports
`register`, so that a new method is its file. Reading records imports the methods, and torch with them.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, TypeVar

from interp.kernels.errors import InterpError
from interp.papers import PAPERS, Paper

Kind = Literal["decoder", "vit", "lvlm", "encoder-decoder"]
KINDS: tuple[Kind, ...] = ("decoder", "vit", "lvlm", "encoder-decoder")
NO_PICTURE: dict[Kind, str] = dict.fromkeys(("decoder", "encoder-decoder"), "it sees no picture")
"""Why methods about pictures refuse the other kinds of models."""
NO_IMAGE_IN_TEXT: dict[Kind, str] = {
    "decoder": "no text of it holds an image",
    "vit": "no text goes with its picture",
    "encoder-decoder": "no text of it holds an image",
}
"""The same of methods about an image within a text."""
Shown = Literal["map", "bars", "curve", "edges", "tokens", "table", "page", "none"]
Need = Literal["metric", "source", "task", "needles", "result"]
ARXIV = re.compile(r"\b\d{4}\.\d{4,5}\b")
REGISTERS = re.compile(r"^from interp\.records import (?:\([^)]*|.*)\bregister\b", re.MULTILINE)


class RecordError(InterpError):
    """A record that contradicts itself or another one, or that nobody has."""


@dataclass(frozen=True, eq=False)
class Trial:
    """A tiny model and a question to it, on which an example of a method is tried."""

    kind: Kind
    model: Any
    base: Any
    source: Any
    """Another run of the same length; the metric prefers the base."""
    metric: Any
    heads: str
    """All heads of the tower that answers, "L*.H*"."""
    needles: Any
    """A task of needles in a text, on a model that finds them; the question itself where the model reads no text."""
    folder: Path
    """Empty, for what writes."""
    labels: Any
    """The right answers' ids or classes."""
    reads: Any = "last"
    """The position that the answer is read at."""
    task: Any = None
    """The question as a task, where the model has a processor."""
    texts: tuple[str, ...] = ()
    """For a model that reads text."""
    found: dict[str, Any] = field(default_factory=dict)
    """Results that other methods start from."""

    @property
    def tower(self) -> str:
        """The start of the answering tower's sites, "" where there is one tower."""
        return self.heads.partition("L")[0]

    @property
    def layers(self) -> int:
        """How many layers the answering tower has."""
        return len(self._stack.layers)

    @property
    def count(self) -> int:
        """How many heads it has."""
        return sum(layer.heads for layer in self._stack.layers)

    @property
    def names(self) -> list[str]:
        """Its heads, "L0.H1" or "text.L0.H1"."""
        return [f"{self.tower}L{layer.index}.H{n}" for layer in self._stack.layers for n in range(layer.heads)]

    @property
    def width(self) -> int:
        """Numbers of a head's output."""
        return int(self._stack.layers[0].d_value)

    @property
    def breadth(self) -> int:
        """Numbers of its residual."""
        return int(self._stack.width)

    @property
    def edges(self) -> int:
        """Connections between its embedding, heads, MLPs and logits."""
        heads, groups = self._stack.layers[0].heads, self._stack.layers[0].kv_heads
        before = [1 + layer * (heads + 1) for layer in range(self.layers + 1)]
        return sum((heads + 2 * groups) * n + n + heads for n in before[:-1]) + before[-1]

    @property
    def sweep(self) -> float:
        """Forward passes of each head patched alone, each from its own layer on."""
        depth = self.layers
        return sum(layer.heads * (depth - n) / depth for n, layer in enumerate(self._stack.layers))

    @property
    def wide(self) -> float:
        """Forward passes that as many tokens take as the tower is wide."""
        return float(self._stack.width) / self._tokens.numel()

    @property
    def turned(self) -> float:
        """The same where positions are rotated, so that a row holds one vector."""
        return self.wide * (self._tokens.shape[1] if self.kind in ("decoder", "lvlm") else 1)

    @property
    def _tokens(self) -> Any:
        return self.base.valid if self.base.ids is None else self.base.ids

    @property
    def reader(self) -> Any:
        """The model that the needles are put to."""
        return getattr(self.needles, "model", None) or self.model

    @property
    def _stack(self) -> Any:
        return self.model.ready().tower(self.tower.rstrip(".") or None, text=self.heads)

    def of(self, name: str) -> Any:
        """What another method finds here, for one that starts from its result."""
        if name not in self.found:
            self.found[name] = of(name).example(self)
        return self.found[name]


Example = Callable[..., Any]
"""From a trial (and, for a choice, what it chooses) to a result."""
Passes = Callable[[Trial], float]
"""From a trial to an upper bound of the work, in forward passes over the base; a backward pass is two."""


@dataclass(frozen=True, eq=False)
class Method:
    """A public call."""

    name: str
    """As it is called: "interp.patching.knockout"."""
    number: str
    """What its numbers are: of what, in which unit, and what their sign says."""
    example: Example
    passes: Passes
    """What `example` takes at most, once the model is known."""
    shown: Shown
    needs: tuple[Need, ...] = ()
    unfit: Mapping[Kind, str] = field(default_factory=dict)
    """Kinds of model it refuses, and why."""
    values: str | None = "values"
    """Where its result keeps a number per example; None where there is no such number."""
    examples: int = -1
    """The axis of `values` of the examples."""
    made_of: tuple[str, ...] = ()
    """Methods it is a composition of; others import no method."""
    label: str = ""
    """What rows of a table call it, where that is not the name of its call."""
    signed: bool = True
    """Whether numbers below zero have a meaning."""
    papers: tuple[str | Paper, ...] = ()
    """Numbers at arXiv, or papers nobody else cites; those of the docstring where there are none."""

    @property
    def home(self) -> str:
        """The module it is registered in."""
        return str(self.example.__module__)


@dataclass(frozen=True, eq=False)
class Variant:
    """One choice of a method: `interp.attribute(method="relp")`."""

    of: str
    """The call, "interp.attribute"."""
    name: str
    number: str
    run: Callable[..., Any]
    """What the call does when this is chosen."""
    argument: str = "method"
    order: int = 0
    """Its place among the choices, small ones first."""
    passes: Passes | None = None
    """What the call's example takes with this choice, where that is not what it takes anyway."""
    how: Mapping[str, Any] = field(default_factory=dict)
    """What is particular about it, as the call reads it."""
    example: Mapping[str, Any] = field(default_factory=dict)
    """Further arguments of the call's example."""
    unfit: Mapping[Kind, str] = field(default_factory=dict)
    signed: bool = True
    papers: tuple[str | Paper, ...] = ()

    @property
    def home(self) -> str:
        """The module it is registered in."""
        return str(self.run.__module__)


Record = Method | Variant
AnyRecord = TypeVar("AnyRecord", Method, Variant)
_METHODS: dict[str, Method] = {}
_VARIANTS: dict[tuple[str, str], Variant] = {}


def register(record: AnyRecord) -> AnyRecord:
    """Make a method, or a choice of one, known; registering it again from the same file replaces it."""
    known: Record | None
    if isinstance(record, Method):
        known = _METHODS.get(record.name)
    else:
        known = _VARIANTS.get((record.of, record.name))
    if known is not None and known.home != record.home:
        raise RecordError(f"{record.name!r} is registered by {known.home} already, and again by {record.home}.")
    if isinstance(record, Method):
        _METHODS[record.name] = record
    else:
        _VARIANTS[record.of, record.name] = record
    return record


def every() -> tuple[Method, ...]:
    """The records of all public calls, by name."""
    _load("")
    return tuple(_METHODS[name] for name in sorted(_METHODS))


def of(name: str) -> Method:
    """The record of a public call."""
    _load("")
    if name not in _METHODS:
        raise RecordError(f"no method is registered as {name!r}; there are {', '.join(sorted(_METHODS))}.")
    return _METHODS[name]


def variants(call: str, *, room: str = "") -> dict[str, Variant]:
    """The choices of a call by name, in their order; only files of `room` are looked at where one is named."""
    _load(room)
    found = [one for one in _VARIANTS.values() if one.of == call]
    return {one.name: one for one in sorted(found, key=lambda one: (one.order, one.name))}


def labelled(label: str) -> Record | None:
    """The record whose numbers a table of heads calls so: a method's label, or a choice of attribution."""
    found: Record | None = next((one for one in every() if label == (one.label or one.name)), None)
    return found or variants("interp.attribute").get(label)


def docstring(record: Record) -> str:
    """That of the file it is in, on one line."""
    return re.sub(r"\s+", " ", sys.modules[record.home].__doc__ or "")


def asks(record: Record) -> str:
    """What it asks: the first sentence of its file."""
    return re.split(r"(?<=[.?]) ", docstring(record))[0]


def part(record: Record, title: Literal["Cost", "Limits"]) -> str:
    """What its file says after `Cost:` or `Limits:`, up to the next of them."""
    found = re.search(
        rf"\b{title}\b[^:]{{0,80}}: (.*?)(?= (?:Cost|Limits|Notice)\b[^:]{{0,80}}: |$)", docstring(record)
    )
    return found[1] if found else ""


def numbers_of(record: Record) -> list[str]:
    """The arXiv numbers of its papers."""
    own = [one if isinstance(one, str) else one.number for one in record.papers]
    return own or list(dict.fromkeys(ARXIV.findall(docstring(record))))


def papers_of(record: Record) -> list[Paper]:
    """Its papers, for a bibliography."""
    own = {one.number: one for one in record.papers if isinstance(one, Paper)}
    missing = [number for number in numbers_of(record) if number not in own and number not in PAPERS]
    if missing:
        raise RecordError(f"{record.name} cites {missing[0]}, and interp/papers.py has no such paper.")
    return [own.get(number) or PAPERS[number] for number in numbers_of(record)]


@cache
def _load(room: str) -> None:
    """Import every file of a room that registers something."""
    root = Path(__file__).parent
    for file in sorted((root / room).rglob("*.py")):
        inside = file.relative_to(root)
        if inside.parts[0] not in ("hooks", "kernels") and REGISTERS.search(file.read_text(encoding="utf-8")):
            import_module(".".join(("interp", *inside.with_suffix("").parts)))


class Choices:
    """The choices of a call for a command line, which are looked up only when they are asked for."""

    def __init__(self, call: str, *, room: str) -> None:
        self.call, self.room = call, room

    def __iter__(self) -> Any:
        return iter(variants(self.call, room=self.room))

    def __contains__(self, name: object) -> bool:
        return name in variants(self.call, room=self.room)
