"""What a model is made of, as values: towers of layers, and the ports where their tensors can be read and replaced."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

from interp.hooks.errors import SiteError
from interp.hooks.sites import (
    KV,
    LAYER,
    MODEL,
    LayerPass,
    Pattern,
    Site,
    layer_of,
    nearest,
    parse,
    pass_of,
    per_layer,
)  # fmt: skip

Standpoint = Literal["interface", "sdpa", "registry", "border"]


@dataclass(frozen=True)
class Nth:
    """One of the times that a module runs in one call of the model."""

    module: str
    number: int
    """Which, from 0."""
    of: int
    """How many there were in the traced call."""
    calls: bool = False
    """Whether what is counted are the attention calls that the module makes, and not how often it is entered."""


@dataclass(frozen=True)
class Port:
    """One tensor at the border of a module: an argument or (part of) the output."""

    module: str
    side: Literal["in", "out"]
    key: int | str | None = None
    """Which argument (a position or a keyword), or which element of a tuple output; None for a bare output."""
    in_place: bool = False
    """A residual that is read a second time without our notice, so that it has to be changed in place."""
    folded: bool = False
    """Batch and position come folded into one axis."""
    minus: Port | None = None
    """For a write that is not the output of one module (a gate is between): the residual to subtract from this one."""
    nth: Nth | None = None
    """The pass it belongs to, where the module runs several times in one call of the model; None for all of them."""


@dataclass(frozen=True)
class Reader:
    """A projection that reads part of a layer's z: a run of its positions from one end, as the streams of words and
    picture do in joint attention, or all of them, in the first columns of what it reads."""

    module: str
    end: Literal["first", "last", "all"]


@dataclass(frozen=True)
class Share:
    """Which part of a layer's heads this process has, where they are in several (`hooks/anatomy/spread.py`)."""

    number: int
    """Of this process, from 0."""
    of: int
    group: str
    """torch's name of the processes that have the others."""
    units: bool = False
    """Whether the units of the MLP are cut likewise."""

    def own(self, count: int) -> range:
        """The own ones of so many heads."""
        each = count // self.of
        return range(self.number * each, (self.number + 1) * each)


@dataclass(frozen=True)
class Layer:
    """One block with one attention: sizes seen in a traced call, and where each component is."""

    index: int
    """The number of the layer."""
    block: str
    """The name of the module that is the block."""
    attention: str
    """The name of the module that is its attention."""
    kind: Literal["self", "cross"]
    """"self" or "cross"."""
    heads: int
    """The number of query heads."""
    kv_heads: int
    """The number of kv heads."""
    d_head: int
    """The width of queries and keys."""
    d_value: int
    """The width of values, and of z."""
    out: str | None
    """The output projection, whose input is z."""
    standpoint: Standpoint
    """Where its attention is seen (`hooks/stand/standpoints.py`)."""
    ports: Mapping[str, Port] = field(default_factory=dict)
    """By component, the module and the argument or output where it is."""
    missing: Mapping[str, str] = field(default_factory=dict)
    """Components this layer does not have, and why."""
    implementation: str = ""
    """The name of transformers' attention implementation."""
    readers: tuple[Reader, ...] = ()
    """Who reads z, where no one projection reads all of it and nothing else (`out` is None then)."""
    nth: Nth | None = None
    """Which of the passes of its block it is, where its index is a `LayerPass` with one."""
    share: Share | None = None
    """Which of the heads are in this process, where they are not all; `heads` and `kv_heads` count all of them."""

    @property
    def projection(self) -> str | None:
        """What makes `attn_out`: the output projection, or of several that of the stream whose residual it is."""
        port = self.ports.get("attn_out") if self.out is None and self.readers else None
        return self.out if port is None else port.module

    @property
    def run(self) -> tuple[str, int]:
        """Its block, and which time that runs."""
        return self.block, 0 if self.nth is None else self.nth.number

    @property
    def gated(self) -> bool:
        """Whether something is between the attention and its output projection: z is what the projection reads."""
        return self.seen and "z" in self.ports

    @property
    def seen(self) -> bool:
        """Whether the attention call is seen, with q, k, v and mask; otherwise only the borders of modules are."""
        return self.standpoint != "border"

    @property
    def group(self) -> int:
        """How many query heads read one kv head."""
        return self.heads // self.kv_heads

    def head_count(self, component: str, *, query_heads: bool = False) -> int:
        """How many heads the component has in this layer."""
        return self.kv_heads if component in KV and not query_heads else self.heads

    def heads_of(self, site: Site) -> tuple[int, ...]:
        """The heads along a site's head axis, in the order they were written; kv heads for `k` and `v`."""
        if site.heads is None:
            return tuple(range(self.head_count(site.component)))
        if site.query_heads and site.component in KV:
            return tuple(dict.fromkeys(head // self.group for head in site.heads))
        return site.heads


@dataclass(frozen=True)
class Tower:
    """One stack of attention layers."""

    name: str
    """The name of the tower, such as "text"."""
    layers: tuple[Layer, ...]
    """Its layers that have attention."""
    width: int
    """The width of its residual."""
    bidirectional: bool
    """Whether tokens see later tokens."""
    final_norm: Port | None = None
    """The norm after its last layer."""
    skipped: tuple[int, ...] = ()
    """Layers that exist and of which no attention was seen in the traced call."""

    @cached_property
    def by_index(self) -> dict[int, Layer]:
        """Its layers by their number."""
        return {layer.index: layer for layer in self.layers}

    @property
    def passes(self) -> dict[int, int]:
        """By number, how often each layer runs that does so several times in one call of the model."""
        counted = Counter(layer_of(layer.index) for layer in self.layers)
        return {number: times for number, times in counted.items() if times > 1}

    def layer(self, index: int) -> Layer:
        """The layer of that number, or of that pass, or an error that names those there are."""
        if index in self.by_index:
            return self.by_index[index]
        times = self.passes.get(layer_of(index))
        if times is not None and pass_of(index) is None:
            raise SiteError(
                f"layer {index} of the tower {self.name!r} has {times} passes: name one, such as 'L{index}@0'."
            )
        if times is not None:
            raise SiteError(f"no pass {pass_of(index)} of layer {layer_of(index)}: it has passes 0-{times - 1}.")
        why = " It exists, and no attention of it was seen in the traced call." if index in self.skipped else ""
        raise SiteError(f"no layer {index} in the tower {self.name!r}: it has layers {sorted(self.by_index)}.{why}")

    def __str__(self) -> str:
        counts = sorted({(layer.heads, layer.kv_heads, layer.d_head) for layer in self.layers})
        heads = ", ".join(f"{h} heads x {d}" + (f" over {k} kv heads" if k != h else "") for h, k, d in counts)
        cross = sum(layer.kind == "cross" for layer in self.layers)
        note = f", {cross} of them cross-attention" if 0 < cross < len(self.layers) else ""
        return f"{self.name}: {self._counted()}{note}, width {self.width}, {heads}{self._shared()}"

    def _shared(self) -> str:
        """Which heads are in this process, where they are not all."""
        shares = {(layer.share, layer.heads) for layer in self.layers if layer.share is not None}
        said = sorted(f"{s.own(n).start}-{s.own(n).stop - 1} of {n}" for s, n in shares if s is not None)
        number = {f"{s.number} of {s.of}" for s, _ in shares if s is not None}
        return f"; in this process ({', '.join(sorted(number))}) heads {', '.join(said)}" if said else ""

    def _counted(self) -> str:
        count, often = len({layer_of(layer.index) for layer in self.layers}), self.often()
        return f"{count} layer{'s' * (count != 1)}" + (f", {often}" if often else "")

    def often(self) -> str | None:
        """Which layers run several times in one call of the model, and what that is called."""
        passes = self.passes
        if not passes:
            return None
        number, times = max(passes.items(), key=lambda one: one[1])
        every = len(passes) == len({layer_of(layer.index) for layer in self.layers}) > 1
        which = "each layer" if every else f"L{','.join(map(str, passes))}"
        many = "passes" if set(passes.values()) == {times} else "passes at most"
        return (
            f"{which} in {times} {many} (L{number}@{times - 1} is the last pass of layer {number}, a bare L{number}"
            " means all of them)"
        )


@dataclass(frozen=True)
class Anatomy:
    """All towers of a model and its connectors."""

    towers: Mapping[str, Tower]
    """The towers by name."""
    main: str | None
    """The tower meant when a site names none; None where that would be a guess."""
    connector: Port | None = None
    """The module between two towers, such as that of pictures and the text."""
    unheld: Mapping[str, str] = field(default_factory=dict)
    """Modules that attend and are no layer of a tower, and why."""

    def tower(self, name: str | None, *, text: str) -> Tower:
        """The tower a site means."""
        name = self.main if name is None else name
        if name is None:
            raise SiteError(
                f"{text!r} names no tower, and this model has {', '.join(self.towers)}:"
                f" write '{next(iter(self.towers))}.{text}'."
            )
        if name not in self.towers:
            raise SiteError(
                f"no tower {name!r} in {text!r}; this model has {', '.join(self.towers)}.{nearest(name, self.towers)}"
            )
        return self.towers[name]

    def sites(self, spelled: str | Site) -> list[Site]:
        """Every site that a spelling means in this model, in layer order, each checked to exist."""
        pattern = parse(spelled)
        if pattern.component == "logits":
            return [Site(None, None, "logits")]
        if pattern.component == "out":
            return [self._connector(pattern)]
        tower = self.tower(pattern.tower, text=pattern.text)
        if pattern.component in MODEL:
            return [Site(self._spelled(tower), None, pattern.component)]
        found = [self._checked(tower, site) for site in self._layers(tower, pattern)]
        wanted = [site for site in found if isinstance(site, Site)]
        if not wanted:
            raise SiteError(f"{pattern.text!r}: {next(str(why) for why in found)}")
        return wanted

    def all_sites(self) -> list[Site]:
        """Every place that can be read, but patterns, scores and results: these are of the size of rows by rows, or of
        heads by width."""
        named = [f"L*.{one}" for one in ("q", "k", "v", "z", *sorted(LAYER))]
        spelled = [f"{tower}.{one}" for tower in self.towers for one in named]
        for name, tower in self.towers.items():
            ends = {"embed": "resid_pre" in tower.layers[0].ports, "final_norm": tower.final_norm is not None}
            spelled += [f"{name}.{end}" for end, there in ends.items() if there]
        found: list[Site] = []
        for one in [*spelled, *(["connector.out"] if self.connector else ())]:
            with suppress(SiteError):  # a component that this tower does not have
                found += self.sites(one)
        return found

    def _connector(self, pattern: Pattern) -> Site:
        if pattern.tower != "connector" or self.connector is None:
            there = "'connector.out'" if self.connector else "none here"
            raise SiteError(f"{pattern.text!r}: 'out' is the output of a connector between towers; there is {there}.")
        return Site("connector", None, "out")

    def _layers(self, tower: Tower, pattern: Pattern) -> list[Site]:
        def heads_of(layer: int) -> int:
            return tower.layer(layer).head_count(pattern.component, query_heads=pattern.kind == "H")

        return per_layer(pattern, sorted(tower.by_index), heads_of, tower=self._spelled(tower))

    def _spelled(self, tower: Tower) -> str | None:
        return None if len(self.towers) == 1 else tower.name

    def _checked(self, tower: Tower, site: Site) -> Site | str:
        """The site, or why this one layer lacks it: a wildcard may pass over such a layer, a single site may not."""
        assert site.layer is not None
        layer = tower.layer(site.layer)
        component = site.component
        if component in layer.missing:
            return f"{tower.name} layer {layer.index} has no {component}: {layer.missing[component]}."
        if component in LAYER and component not in layer.ports:
            return f"{tower.name} layer {layer.index} has no {component}: no such tensor was found in its block."
        if component in ("q", "k", "v", "z") and not layer.seen and component not in layer.ports:
            return (
                f"{tower.name} layer {layer.index} has no {component}: its attention call is not seen, and its"
                " family does not say where it is."
            )
        return site

    def layer(self, site: Site) -> Layer:
        """The layer of a site."""
        assert site.layer is not None
        return self.tower(site.tower, text=str(site)).layer(site.layer)

    def one(self, spelled: str | Site) -> Site:
        """The single site a spelling means."""
        found = self.sites(spelled)
        if len(found) != 1:
            passes = sum(isinstance(site.layer, LayerPass) for site in found) == len(found)
            how = f" Write one pass, such as {str(found[-1])!r}." if passes else ""
            raise SiteError(f"{str(spelled)!r} means {len(found)} sites, expected one.{how}")
        return found[0]

    def renamed(self, **changes: Tower) -> Anatomy:
        """The same anatomy with some towers replaced."""
        return replace(self, towers={**self.towers, **changes})

    def __str__(self) -> str:
        return "\n".join([*map(str, self.towers.values()), *self.left_out()])

    def left_out(self) -> list[str]:
        """What attends and is not held, a line for all modules of one name but their numbers."""
        alike: dict[tuple[str, str], list[str]] = {}
        for name, why in self.unheld.items():
            alike.setdefault((re.sub(r"(?<=\.)\d+(?=\.|$)", "*", name), why), []).append(name)
        counted = {key: f" ({len(some)} modules)" if len(some) > 1 else "" for key, some in alike.items()}
        return [f"not held: {name or 'the model itself'}{many}: {why}" for (name, why), many in counted.items()]
