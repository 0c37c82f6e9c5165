"""The answer key of a planted model, as values: which heads were planted, what they do, and what each method must see.

An `Expected` effect is `metric(patched) - metric(base)` with the logit difference of the probe as metric, worked out on
paper before the model was built; `finds` says whether a method that ranks by that effect finds the heads at all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from interp.hooks.head_names import head_name
from interp.hooks.sites import nearest
from interp.kernels.errors import InterpError

Method = Literal["denoise", "noise", "zero", "attribute-denoise", "attribute-noise"]


@dataclass(frozen=True)
class Head:
    """One planted head and its job in one sentence."""

    site: str
    role: str
    does: str


@dataclass(frozen=True)
class Edge:
    """A planted connection: the sender's output is read by the receiver's q, k or v, or by the logits."""

    sender: str
    receiver: str


@dataclass(frozen=True)
class Picture:
    """A grid of coloured squares, by colour name, row by row; `marked` is the index of the dotted one."""

    squares: tuple[str, ...]
    marked: int | None = None


@dataclass(frozen=True)
class Probe:
    """A pair of prompts of equal length that differ in what the named heads must tell apart."""

    name: str
    clean: str
    corrupt: str
    answer: str
    wrong: str
    heads: tuple[str, ...]
    clean_picture: Picture | None = None
    corrupt_picture: Picture | None = None


@dataclass(frozen=True)
class Expected:
    """What one method must report for these heads (changed together) on a probe, and why."""

    probe: str
    method: Method
    heads: tuple[str, ...]
    effect: float
    finds: bool
    why: str


@dataclass(frozen=True)
class AnswerKey:
    """Everything that is known about a planted model before it is run."""

    model: str
    heads: tuple[Head, ...]
    edges: tuple[Edge, ...]
    null: tuple[str, ...]
    probes: tuple[Probe, ...]
    expected: tuple[Expected, ...] = ()

    def role(self, name: str) -> tuple[str, ...]:
        """The sites of the heads with that role."""
        return tuple(head.site for head in self.heads if head.role == name)

    def probe(self, name: str) -> Probe:
        """The probe of that name."""
        found = {probe.name: probe for probe in self.probes}
        if name not in found:
            raise InterpError(
                f"expected a probe of {self.model} among {', '.join(found)}, got {name!r}.{nearest(name, found)}"
            )
        return found[name]


def null_heads(layers: int, heads: int, planted: tuple[Head, ...], *, tower: str | None = None) -> tuple[str, ...]:
    """Every site of the grid that was not planted."""
    taken = {head.site for head in planted}
    grid = (head_name(tower, layer, head) for layer in range(layers) for head in range(heads))
    return tuple(site for site in grid if site not in taken)
