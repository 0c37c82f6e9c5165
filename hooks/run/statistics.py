"""Statistics of the attention of chosen layers, taken while the model runs, without its N x N patterns.

The model's own implementation computes z; the statistics come from what the call received. With `impl` the kernels
compute both in one pass, and the model goes on with their z. Padding is not a row: padded queries take no part in
sums over rows. Distances in a picture are between patches on their grid, averaged over the weight on patches: what
is no patch (a CLS token, a register) is no key of theirs, and as a row it is at no distance, 0, as is a row that looks
at no patch. Rows and keys of cross-attention are two sequences, in which there is no token before, no token itself and
no distance: refused.

Keys are those the model sees (`keys="seen"`), and some models see padding: Whisper gives its frames of filling weight
like any others. `mass:pad` is how much; `keys="real"` takes every statistic of the weights on real keys alone, as they
are when the others are hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from threading import get_ident
from typing import Any, Literal

import torch
from torch import Tensor, nn

from interp.hooks.anatomy.spread import Order, axis_of, layer_here
from interp.hooks.anatomy.towers import Anatomy, Layer
from interp.hooks.errors import InputsError, NotFired
from interp.hooks.inputs.inputs import Inputs, Positions
from interp.hooks.run.tape import key_columns, tower_inputs
from interp.hooks.sites import Site
from interp.hooks.stand.attention import by_numbers, fused_part, pattern_of
from interp.hooks.stand.call import Call, Tap, received
from interp.hooks.stand.part import Part
from interp.hooks.stand.standpoints import watch
from interp.kernels.attention import attend
from interp.kernels.cpu.given import statistics
from interp.kernels.masks.symbols import Dense, as_mask
from interp.kernels.request import request
from interp.kernels.stats import Stat, concat, parse, parse_all

FIRST = "mass:first"
"""The mass on the first real token is the mass on a key set: a sliding window may have dropped that key."""

NOWHERE = "mass:nowhere"
"""The mass on tokens that are no patch of the picture."""

ALONG = ("distance", "previous", "self")
"""What compares a row's place with a key's, so both must be of one sequence."""
Keys = Literal["seen", "real"]
LEAST = 1e-6
"""Weight on patches below which the rounding of the rest would be all there is of their distance."""


@dataclass(frozen=True)
class Request:
    """What is asked of every layer."""

    stats: tuple[Stat, ...]
    rows: Positions | None = None
    impl: str | None = None
    reduce_groups: Any = None
    keys: Keys = "seen"

    @classmethod
    def of(
        cls,
        stats: Sequence[str] | str,
        rows: Positions | None,
        impl: str | None,
        reduce_groups: Any,
        keys: Keys = "seen",
    ) -> Request:
        """Read the names; an average over rows is merged over chunks from the two numbers it is made of."""
        if keys not in ("seen", "real"):
            raise InputsError(f"keys= is 'seen' (by the model) or 'real' (padding left out), got {keys!r}.")
        if keys == "real" and impl is not None:
            raise InputsError(
                "impl= computes the model's own attention, which is over the keys it sees: leave keys= out."
            )
        wanted = parse_all(stats)
        if not wanted:
            raise InputsError("name at least one statistic, for example stats=['entropy', 'received'].")
        if any(s.kind == "received_mean" for s in wanted):
            wanted = tuple(dict.fromkeys((*wanted, Stat("received"), Stat("seen"))))
        wanted = tuple(Stat("mass", "first") if s.kind == "first" else s for s in wanted)
        return cls(wanted, rows, impl, reduce_groups, keys)

    @property
    def names(self) -> list[str]:
        """The statistics, as the kernels spell them."""
        return [s.name for s in self.stats]


@dataclass
class StatTap(Tap):
    """Takes the statistics of one layer, call by call."""

    request: Request
    site: Site
    layer: Layer
    """As the whole model has it."""
    inputs: Inputs
    offset: Callable[[], int]
    parts: list[dict[str, Tensor]] = field(default_factory=list)
    ran: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.thread = get_ident()

    def before(self, call: Call) -> None:
        if self.request.impl is not None and self.site.heads is not None:
            raise InputsError("impl= computes the model's own attention too, so it needs all heads: leave heads out.")

    def __str__(self) -> str:
        return f"statistics with impl={self.request.impl!r}"

    def attends(self) -> bool:
        return self.request.impl is not None

    def attend(self, call: Call, inner: Callable[[], None]) -> None:
        """In the place of the model's implementation: z and the statistics in one pass."""
        heads = self.heads
        if taken := by_numbers(call, heads):
            raise InputsError(
                f"{self.site}: impl= computes z and statistics in one kernel, and heads {list(taken)} attend in"
                f" another way ({', '.join(s.what for s in call.programs if set(s.heads) & set(taken))}): leave impl="
                " out."
            )
        found = self._take(call, heads, z=True)
        assert found is not None
        call.z = found.transpose(1, 2).to(call.v.dtype).contiguous()
        call.heed()

    def record(self, call: Call) -> None:
        if self.request.impl is None:
            self._take(call, self.heads, z=False)

    @property
    def heads(self) -> tuple[int, ...]:
        """Those that it looks at, numbered as in the calls of this process."""
        some = axis_of(self.layer, self.site)
        return tuple(range(layer_here(self.layer).heads)) if some is None else some

    def _take(self, call: Call, heads: tuple[int, ...], *, z: bool) -> Tensor | None:
        queries, keys = call.q.shape[2], call.k.shape[2]
        rows = self._rows(queries)
        if rows is not None and not len(rows) and not z:
            return None
        grid, sets = self._grid(keys), self._key_sets(queries, keys)
        if grid is not None:
            sets["nowhere"] = grid.nowhere.expand(len(call.q), -1)
        asked = {
            "stats": [*self.request.names, *([] if grid is None else [NOWHERE])],
            "rows": None if z else rows,
            "key_sets": sets,
            "places": None if grid is None else grid.places,
        }
        taken = by_numbers(call, heads)
        fused = tuple(head for head in heads if head not in taken)
        parts, made = {}, None
        if fused:
            parts[fused], made = self._fused(call, fused, asked, z=z)
        if taken and self.request.keys == "real" and not bool(self._keys().valid.all()):
            raise InputsError(f"{self.site}: heads {list(taken)} attend by a head program: leave keys= out.")
        if taken:
            parts[taken] = self._given(call, taken, asked, rows)
        stats = _in_order(heads, parts)
        stats = stats if grid is None else grid.corrected(stats, rows)
        self.parts.append({name: _placed(name, value, self._first_key(queries, keys)) for name, value in stats.items()})
        return made

    def _fused(
        self, call: Call, heads: tuple[int, ...], asked: Mapping[str, Any], *, z: bool
    ) -> tuple[dict[str, Tensor], Tensor | None]:
        """The statistics of heads that a kernel can attend with, and their z."""
        part, edits = fused_part(call, heads)
        done = attend(
            part.q, part.k, part.v if z else None, edits=edits, impl=self.request.impl or "auto", **asked,
            **self._unpadded(part),
        )  # fmt: skip
        self.ran.add(done.impl)
        return done.stats, done.z

    def _given(
        self, call: Call, heads: tuple[int, ...], asked: Mapping[str, Any], rows: Tensor | None
    ) -> dict[str, Tensor]:
        """Those of heads whose program gives its pattern as numbers."""
        part = received(call, heads)
        of = None
        if rows is not None:
            of = torch.zeros(len(part.q), part.q.shape[2], dtype=torch.bool, device=part.q.device)
            of[:, rows] = True
        self.ran.add("given")
        made = request(part.q, part.k, None, **asked, **self._unpadded(part))
        return statistics(pattern_of(call, "pattern", heads, of), made)

    def _unpadded(self, part: Part) -> dict[str, Any]:
        """What the part has in addition to q, k and v; its mask without queries that are padding."""
        sizes = part.q.shape[2], part.k.shape[2]
        return {**part.arguments, "mask": self._without_padding(part.mask, *sizes, part.q.device)}

    @property
    def _grows(self) -> bool:
        """Whether a call may compute some of the inputs' columns only, and go on from a cache."""
        return self.site.tower in (None, "text", "decoder", "cross")

    def _start(self) -> int:
        return self.offset() if self._grows else 0

    def _queries(self) -> Inputs:
        return tower_inputs(self.inputs, self.site, cross=self.layer.kind == "cross")

    def _keys(self) -> Inputs:
        return tower_inputs(self.inputs, Site(self.site.tower, self.site.layer, "k"), cross=self.layer.kind == "cross")

    def _rows(self, queries: int) -> Tensor | None:
        if self.request.rows is None:
            return None
        mask = self._queries().mask(self.request.rows)[:, self._start() : self._start() + queries]
        if not bool((mask == mask[:1]).all()):
            raise InputsError(
                "rows= must mean the same columns in every example here; pad on the left, or take all rows and select"
                " afterwards."
            )
        return mask[0].nonzero().flatten()

    def _without_padding(self, mask: Any, queries: int, keys: int, device: torch.device) -> Any:
        """A call's mask without the rows that are padding and, where real keys were asked for, without those keys."""
        mask = self._real_keys(mask, queries, keys, device) if self.request.keys == "real" else mask
        whole, start = self._queries().valid, self._start()
        if bool(whole.all()):
            return mask
        valid = whole[:, start : start + queries]
        if start:  # tokens that were generated after these inputs are real
            valid = torch.nn.functional.pad(valid, (0, queries - valid.shape[1]), value=True)
        elif valid.shape[1] != queries or not (self._grows or whole.shape[1] == queries):
            raise InputsError(
                f"{self.site} has {queries} queries here, but its tower's inputs have {list(whole.shape)} [row,"
                " position], some of them padding: which queries are real is not known; run inputs without padding."
            )
        return as_mask(mask) & Dense(valid[:, None, :, None].expand(-1, -1, -1, keys).to(device))

    def _real_keys(self, mask: Any, queries: int, keys: int, device: torch.device) -> Any:
        if bool(self._keys().valid.all()):
            return mask
        valid = self._of_keys(self._keys().valid, queries, keys)
        return as_mask(mask) & Dense(valid[:, None, None].expand(-1, -1, queries, -1).to(device))

    def _of_keys(self, mask: Tensor, queries: int, keys: int) -> Tensor:
        """What is said of the positions of the tower that is looked at, of a call's keys."""
        if self.layer.kind == "cross":
            mask = mask[:, key_columns(self.inputs, self.site)]
            if mask.shape[1] != keys:
                raise InputsError(
                    f"{self.site} has {keys} keys here, and the tower it looks at {mask.shape[1]} positions: which key"
                    " is which is not known; ask for statistics that name no keys."
                )
        first = self._first_key(queries, keys)
        return mask[:, first : first + keys]

    def _first_key(self, queries: int, keys: int) -> int:
        """The column of the first key: a sliding window's cache has dropped those before it."""
        return max(0, self._start() + queries - keys) if self._start() else 0

    def _grid(self, keys: int) -> _Grid | None:
        """Where the patches of a picture are, if distances were asked for and the keys are a whole picture's."""
        if all(s.kind != "distance" for s in self.request.stats):
            return None
        x = self._keys()
        if x.ids is not None or x.length != keys or not self._pictured(x):
            return None
        places = torch.stack([x.roles.frame, x.roles.row, x.roles.col], -1)
        if not bool((places == places[:1]).all()):
            raise InputsError("distances are taken on one grid, and these pictures have several: ask size by size.")
        return _Grid(places[0].clamp(min=0).float(), (x.roles.row < 0)[0])

    def _pictured(self, x: Inputs) -> bool:
        """Whether the tower reads patches, whose places are then known; frames of sound and vectors of text are in a
        row."""
        if bool(x.roles.patch.any()):
            return True
        if bool((x.roles.where("image") | x.roles.where("video")).any()):
            raise InputsError(
                f"{self.site}: the places of this tower's patches are not known, so there is no distance between them."
            )
        return False

    def _key_sets(self, queries: int, keys: int) -> dict[str, Tensor]:
        own = self._keys()
        sets = {s.argument for s in self.request.stats if s.kind == "mass"}
        return {name: self._of_keys(_named(own, name), queries, keys) for name in sets}

    def merged(self) -> dict[str, Tensor]:
        """All chunks as one run, reduced over groups if that was asked."""
        if not self.parts:
            raise NotFired(f"no attention call was seen at {self.site} for these inputs.")
        from interp.kernels.stats import reduce_groups

        whole = concat(self.parts) if len(self.parts) > 1 else dict(self.parts[0])
        whole = {name.replace(FIRST, "first"): value for name, value in self._of_all(whole).items()}
        how = self.request.reduce_groups
        return reduce_groups(whole, self.layer.kv_heads, how) if how is not None else whole

    def _of_all(self, stats: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Of all heads, where some are in other processes: gathered now, once."""
        if self.layer.share is None:
            return stats
        order = Order.of(self.layer, self.site)
        return {name: order.gathered(value, 1) for name, value in stats.items()}


@dataclass(frozen=True, eq=False)
class _Grid:
    """Frame, row and column of every token, [token, 3]; those that are nowhere have been put into the corner."""

    places: Tensor
    nowhere: Tensor

    def corrected(self, stats: Mapping[str, Tensor], rows: Tensor | None) -> dict[str, Tensor]:
        """Distances without the way to the corner, over the weight on patches."""
        chosen = slice(None) if rows is None else rows
        corner = self.places.norm(dim=-1)[chosen].to(stats["distance"])
        rest = (1 - stats[NOWHERE]).clamp(min=0.0)
        far = (stats["distance"] - stats[NOWHERE] * corner).clamp(min=0.0)
        mean = torch.where(rest > LEAST, far / rest.clamp(min=LEAST), 0.0)
        distance = mean.masked_fill(self.nowhere[chosen].to(far.device), 0.0)
        return {**{name: value for name, value in stats.items() if name != NOWHERE}, "distance": distance}


def _named(x: Inputs, name: str) -> Tensor:
    """The positions of a key set; padding is one where a model sees it."""
    return ~x.valid if name == "pad" else x.mask(name)


def _placed(name: str, value: Tensor, first_key: int) -> Tensor:
    """A call's statistic with its keys numbered from the start of the prompt."""
    if not first_key:
        return value
    if name == "argmax" or name.endswith(".keys"):
        return torch.where(value >= 0, value + first_key, value)
    return torch.nn.functional.pad(value, (first_key, 0)) if parse(name.removesuffix(".keys")).per_key else value


def _in_order(heads: tuple[int, ...], parts: Mapping[tuple[int, ...], Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Statistics of some heads and of others as those of all of them in their order."""
    if len(parts) == 1:
        return dict(next(iter(parts.values())))
    came = [head for some in parts for head in some]
    order = [came.index(head) for head in heads]
    names = next(iter(parts.values()))
    return {name: torch.cat([found[name] for found in parts.values()], 1)[:, order] for name in names}


def _of_one_sequence(taps: Mapping[Site, StatTap], request: Request) -> None:
    """Refuse what compares places of rows and keys where these are two sequences."""
    asked = [s.name for s in request.stats if s.kind in ALONG]
    crossed = [str(site) for site, tap in taps.items() if tap.layer.kind == "cross"]
    if asked and crossed:
        raise InputsError(
            f"{crossed[0]} is cross-attention, whose rows and keys are two sequences: {', '.join(asked)} has no meaning"
            " there. Ask for entropy, max, argmax, topk:K, received or mass:NAME, name layers of self-attention, or see"
            " interp.heads.alignment for whether its rows follow the other sequence."
        )


def stream(
    root: nn.Module,
    anatomy: Anatomy,
    sites: Sequence[Site],
    request: Request,
    inputs: Inputs,
    forward: Callable[[], None],
    offset: Callable[[], int],
) -> dict[Site, StatTap]:
    """Run `forward` with a tap at every site's attention; returns the taps with what they took."""
    taps = {site: StatTap(request, site, anatomy.layer(site), inputs, offset) for site in sites}
    outside = [str(site) for site, tap in taps.items() if not tap.layer.seen]
    if outside:
        raise InputsError(
            f"{outside[0]}: statistics need the attention call, and this family's is not seen: it uses neither"
            " transformers' interface nor torch's scaled_dot_product_attention."
        )
    _of_one_sequence(taps, request)
    with ExitStack() as undo:
        for tap in taps.values():
            undo.callback(watch(root, layer_here(tap.layer), tap))
        forward()
    return taps
