"""The weights of a head as matrices from and to the residual, whatever the model calls its projections.

The matrices are asked for, not looked up: unit vectors are put where the attention reads, and what arrives at q, k and
v are the rows of W_Q, W_K and W_V (less what a vector of zeros gives, the bias), so fused, quantised, grouped or
adapted projections are all the same. Queries and keys of rotary models are asked at position 0, where nothing is
turned. The gain of the norm before the attention, and the taking away of the mean in a layer norm, are folded into W_Q,
W_K and W_V (row vectors, `x W`); the gains of a norm or scale behind the output projection are folded into W_O. What a
norm divides by is left out everywhere: it is one positive number per token. Cost: for a model of width d a forward pass
over d tokens, for all layers together unless they are many and wide, and five short passes per layer. Limits: where
queries and keys are normalised on the way (Qwen3, Gemma-3) no matrix makes them, which is said; where values are
(DeepSeek), the model is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from interp.hooks.anatomy.norms import Frozen, frozen
from interp.hooks.anatomy.spread import whole
from interp.hooks.drive.blocks import called, keeps
from interp.hooks.drive.intercept import Intercept
from interp.hooks.drive.tail import Tail, last_tower, unembedding
from interp.hooks.edits.edits import Edit, Set
from interp.hooks.errors import InputsError, ModelError
from interp.hooks.examples.example import example
from interp.hooks.run.keeper import Wish
from interp.hooks.run.session import Session
from interp.hooks.run.writes import Writes, spelled
from interp.hooks.sites import Site
from interp.hooks.stand.ports import head_results

if TYPE_CHECKING:
    from interp.hooks.anatomy.towers import Layer, Tower
    from interp.model import Model

WORDS = 4
"""Length of the examples that unit vectors are put into."""
TOGETHER = 4096
"""Tokens that are asked about in one forward pass."""
NUMBERS = 2**26
"""Of layers that are asked about together, about so many numbers of q, of k and of v are held."""


@dataclass(frozen=True, eq=False)
class LayerMatrices:
    """Of one layer, float64, norms folded in: v, q and k [head, d, d_head] (of kv heads repeated for their queries), o
    [head, d_value, d]."""

    v: Tensor
    o: Tensor
    q: Tensor | None
    k: Tensor | None
    why: str = ""
    """Why there are no q and k."""


@dataclass(frozen=True, eq=False)
class HeadMatrix:
    """One head's weights for row vectors, float64: it writes `pattern (x W_V) W_O`, and scores `(x W_Q) (y W_K)'`."""

    W_Q: Tensor
    """[d, d_head]; W_K and W_V, which heads of a group share, likewise."""
    W_K: Tensor
    """[d, d_head], of the kv head that the head reads."""
    W_V: Tensor
    """[d, d_head], of the kv head that the head reads."""
    W_O: Tensor
    """[d_head, d]."""


def head_matrix(model: Model, head: str) -> HeadMatrix:
    """The weights of one head, "L5.H3", however the model keeps them (fused, interleaved, grouped, transposed), without
    biases and norms; of rotary models as they are at position 0, where nothing is turned."""
    anatomy = model.ready()
    site = anatomy.one(f"{head}.z")
    if site.heads is None or len(site.heads) != 1 or site.layer is None:
        raise InputsError(f"{head!r} is not one head: write such as 'L5.H3'.")
    (number,) = site.heads
    layer = anatomy.layer(site)
    found = HeadMatrices(model, anatomy.tower(site.tower, text=head), [site.layer]).plain(site.layer)
    group = number // layer.group
    return HeadMatrix(found["q"][number], found["k"][group], found["v"][group], found["o"][number])


class _Enough(Exception):
    """Everything that is asked for has been seen."""


def _enough(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    raise _Enough


class HeadMatrices:
    """The matrices of a tower's self-attention, of all its layers or of some, worked out when asked for."""

    def __init__(self, model: Model, tower: Tower, layers: Sequence[int] | None = None) -> None:
        self.model, self.tower = model, tower
        own = [layer.index for layer in tower.layers if layer.kind == "self"]
        self.wanted = [tower.layer(index) for index in (own if layers is None else layers)]
        self.name = spelled(model.anatomy, tower)
        self._layers: dict[int, LayerMatrices] = {}

    @cached_property
    def _kwargs(self) -> dict[str, Tensor]:
        return dict(self.model.example())

    @cached_property
    def _run(self) -> tuple[Writes, Tail | None]:
        """One recorded run of the example: its writes, and what makes the logits if this tower does."""
        model, anatomy = self.model, self.model.anatomy
        tape = model.run(self._kwargs, record=Writes.sites(anatomy, self.tower))
        writes = Writes(model.module, tape, self.tower)
        speaks = "logits" in tape and last_tower(anatomy, None) is self.tower
        kwargs = model.called_with(self._kwargs)
        tail = Tail(model.module, self.tower, kwargs, left=writes.final, logits=tape["logits"]) if speaks else None
        return writes, tail

    def of(self, index: int) -> LayerMatrices:
        """The matrices of one layer."""
        if index not in self._layers:
            rows, positions, width = self._few
            at = next(n for n, layer in enumerate(self.wanted) if layer.index == index)
            together = max(1, NUMBERS // (max(width, rows * positions) * width))
            start = at // together * together
            self._layers |= self._asked(self.wanted[start : start + together])
        return self._layers[index]

    def _asked(self, layers: Sequence[Layer]) -> dict[int, LayerMatrices]:
        turned, linear = self._probe(layers)
        for layer in layers:
            if "v" not in linear[layer.index]:
                site = self._site(layer, "v")
                raise ModelError(
                    f"{site}: values are normalised after the projection, so there is no matrix from the residual to"
                    " them."
                )
        found = self._project(layers, first_only=turned)
        return {layer.index: self._folded(layer, found[layer.index], linear[layer.index]) for layer in layers}

    def _folded(self, layer: Layer, found: dict[str, Tensor], linear: set[str]) -> LayerMatrices:
        norm = self._norm(layer)
        made = {name: _folded(norm, value) for name, value in found.items()}
        v = made["v"].repeat_interleave(layer.group, 0)
        bilinear = {"q", "k"} <= linear
        why = (
            ""
            if bilinear
            else "queries or keys are normalised on the way, so there is no matrix from the residual to them"
        )
        q, k = (made["q"], made["k"].repeat_interleave(layer.group, 0)) if bilinear else (None, None)
        return LayerMatrices(v, self._output(layer), q, k, why)

    def _site(self, layer: Layer, component: str) -> Site:
        return Site(self.name, layer.index, component)

    def _read(self, layers: Sequence[Layer], vectors: Tensor, batch: int) -> dict[int, dict[str, Tensor]]:
        """By layer q, k and v [row, position, head, d_head] where all their attentions read these vectors [row,
        position, d]: what came before makes no difference, so one pass does for all."""
        sites = {layer.index: [self._site(layer, name) for name in ("q", "k", "v")] for layer in layers}
        edits = [Set(str(self._site(layer, "attn_in")), vectors) for layer in layers]
        found = self._until(layers, self._inputs(batch), [s for some in sites.values() for s in some], edits)
        return {index: {site.component: found[site].double() for site in some} for index, some in sites.items()}

    def _until(
        self, layers: Sequence[Layer], kwargs: Mapping[str, Tensor], sites: Sequence[Site], edits: Sequence[Edit]
    ) -> Mapping[Site, Tensor]:
        """What a run has at sites of these layers: it ends behind the last of them, and no logits are made that nobody
        reads."""
        model, x = self.model, self.model.inputs(kwargs)
        session = Session(model.module, model.anatomy, edits=edits, wish=Wish(sites), inputs=x, family=model.family)
        end = max(layer.index for layer in layers)
        known = {layer.run for layer in self.tower.layers if layer.index <= end}
        later = [layer for layer in self.tower.layers if layer.index > end and layer.run not in known]
        with Intercept(model.module) as put, model.on(session), torch.no_grad():
            for one in later[:1]:
                put.before(model.module.get_submodule(one.block), _enough, nth=one.nth)
            with suppress(_Enough):
                kept = keeps(model.module, torch.tensor([0]))
                model.module(**called(model.module, model.called_with(x.kwargs), kept))
        session.check_fired()
        return session.recorded()

    def _inputs(self, batch: int) -> dict[str, Tensor]:
        return example(self.model.module, batch=batch, length=WORDS)

    @cached_property
    def _few(self) -> tuple[int, int, int]:
        """[row, position, d] of what the attentions read of two examples."""
        sites = [self._site(layer, "attn_in") for layer in self.wanted]
        tape = self._until(self.wanted, self._inputs(2), sites, ())
        shapes = {tuple(tape[site].shape) for site in sites}
        shape = shapes.pop()
        if shapes or len(shape) != 3:
            every = ", ".join(str(list(one)) for one in (shape, *shapes))
            raise ModelError(
                f"{sites[0]}: the attentions read {every}, not [row, position, d] in every layer: unit vectors cannot"
                " be put there. Name layers of one width."
            )
        return shape

    def _probe(self, layers: Sequence[Layer]) -> tuple[bool, dict[int, set[str]]]:
        """Whether queries depend on their position, and which of q, k and v are linear in each layer."""
        rows, positions, width = self._few
        random = torch.randn(width, generator=torch.Generator().manual_seed(0))
        vectors = torch.zeros(rows, positions, width, dtype=self.model.dtype)
        vectors[0], vectors[1] = random, 2 * random
        found, nothing = self._read(layers, vectors, 2), self._read(layers, torch.zeros_like(vectors), 2)
        turned = any(not self._close(at[name][0, 0], at[name][0, -1]) for at in found.values() for name in ("q", "k"))
        linear = {}
        for index, at in found.items():
            moved = {name: (value - nothing[index][name])[:2, 0] for name, value in at.items()}
            linear[index] = {name for name, (once, twice) in moved.items() if self._close(twice, 2 * once)}
        return turned, linear

    def _close(self, a: Tensor, b: Tensor) -> bool:
        """Equal as far as the model's own rounding allows to tell."""
        near = max(1e-4, 8 * torch.finfo(self.model.dtype).eps)
        return bool(((a - b).abs() <= near * max(1e-12, float(b.abs().max()))).all())

    def _project(self, layers: Sequence[Layer], *, first_only: bool) -> dict[int, dict[str, Tensor]]:
        """By layer W_Q, W_K and W_V as they are, [head, d, d_head]."""
        rows, positions, width = self._few
        each = 1 if first_only else positions
        batch = max(2, min(-(-2 * width // (rows * each)), TOGETHER // positions))
        rows = rows * batch // 2
        units = torch.eye(width, dtype=self.model.dtype)
        parts: dict[int, dict[str, list[Tensor]]] = {one.index: {"q": [], "k": [], "v": []} for one in layers}
        few = torch.zeros(self._few[0], positions, width, dtype=self.model.dtype)
        nothing = {index: {name: value[:1] for name, value in found.items()}
                   for index, found in self._read(layers, few, 2).items()}  # fmt: skip
        for start in range(0, width, rows * each):
            some = units[start : start + rows * each]
            vectors = torch.zeros(rows, each, width, dtype=self.model.dtype)
            vectors.view(-1, width)[: len(some)] = some
            vectors = torch.nn.functional.pad(vectors, (0, 0, 0, positions - each))
            for index, found in self._read(layers, vectors, batch).items():
                for name, value in found.items():
                    parts[index][name].append((value - nothing[index][name])[:, :each].flatten(0, 1)[: len(some)])
        return {index: {name: torch.cat(made).transpose(0, 1).cpu() for name, made in found.items()}
                for index, found in parts.items()}  # fmt: skip

    def _norm(self, layer: Layer) -> Frozen:
        """The norm between the residual and the attention, with its gain."""
        before, after = self._site(layer, "resid_pre"), self._site(layer, "attn_in")
        value = self.model.run(self._kwargs, record=before)[before]

        def norm(x: Tensor) -> Tensor:
            edits = [Set(str(before), x)]
            found: Tensor = self.model.run(self._kwargs, record=after, edits=edits)[after]
            if found.shape != x.shape:
                raise ModelError(f"{after} is {list(found.shape)}, the residual {list(x.shape)}: windows are not read.")
            return found.to(x.device)

        return _at_unit_size(frozen(norm, value, name=f"what is between {before} and {after}"), value)

    def plain(self, index: int) -> dict[str, Tensor]:
        """W_Q [head, d, d_head], W_K and W_V [kv head, d, d_head] and W_O [head, d_value, d] of one layer as they are,
        no norm folded in."""
        layer = self.tower.layer(index)
        turned, linear = self._probe([layer])
        if missing := sorted({"q", "k", "v"} - linear[index]):
            raise ModelError(
                f"{self._site(layer, missing[0])}: {' and '.join(missing)} of this layer are normalised after the"
                " projection, so there is no matrix from the residual to them from what the attention reads."
            )
        return {**self._project([layer], first_only=turned)[index], "o": self._plain_output(layer).cpu()}

    def _output(self, layer: Layer) -> Tensor:
        """W_O with the modules behind it [head, d_value, d]."""
        writes, _ = self._run
        every = self._plain_output(layer)
        carried: Tensor = writes.carry(self._site(layer, "result").whole).linear(
            every.reshape(-1, 1, 1, every.shape[-1])
        )
        return carried[:, 0, 0].reshape(every.shape).cpu()

    def _plain_output(self, layer: Layer) -> Tensor:
        """W_O [head, d_value, d]."""
        site = self._site(layer, "result")
        if layer.out is None:
            raise ModelError(f"{site}: the output projection of this layer was not found.")
        projection = self.model.module.get_submodule(layer.out)
        units = torch.eye(layer.d_value, dtype=self.model.dtype, device=self.model.device)
        z = torch.zeros(layer.heads, layer.d_value, layer.heads, layer.d_value, dtype=units.dtype, device=units.device)
        z[torch.arange(layer.heads), :, torch.arange(layer.heads)] = units
        with torch.no_grad():
            return torch.cat(
                [head_results(projection, z[h : h + 1], (h,))[:, :, 0] for h in range(layer.heads)]
            ).double()

    @cached_property
    def embedding(self) -> Tensor:
        """W_E [vocabulary, d]."""
        words = self._embedding()
        return cast(Tensor, whole(words.weight)).detach()

    def _embedding(self) -> nn.Embedding:
        module: Any = self.model.module
        if hasattr(module, "get_input_embeddings"):
            found = module.get_input_embeddings()
        else:
            size = self.unembedding.shape[1]
            every = [m for m in module.modules() if isinstance(m, nn.Embedding) and m.num_embeddings == size]
            found = every[0] if every else None
        if not isinstance(found, nn.Embedding) or found.embedding_dim != self.tower.width:
            raise ModelError(f"the word embeddings of {type(module).__name__} were not found, or are of another width.")
        return found

    @cached_property
    def unembedding(self) -> Tensor:
        """The final norm's gain and W_U: [d, vocabulary]."""
        _, tail = self._run
        if tail is None:
            raise InputsError(
                f"the tower {self.tower.name!r} does not make the logits, so its heads promote no tokens."
            )
        spoken = unembedding(tail)
        return _folded(_at_unit_size(tail.frozen, tail.left), spoken, torch.promote_types(spoken.dtype, torch.float32))


def _at_unit_size(norm: Frozen, x: Tensor) -> Frozen:
    """The same with the gain of inputs whose root mean square is 1; of a plain multiplier its factor."""
    scale = norm.scale.reshape(-1)
    centred = x.double() - x.double().mean(-1, keepdim=True) if norm.centred else x.double()
    size = centred.square().mean(-1).sqrt().reshape(-1)
    factor = scale if bool((scale - scale[0]).abs().max() <= 1e-9 * scale[0].abs()) else scale * size.to(scale.device)
    return replace(norm, gain=norm.gain * factor[0])


def _folded(norm: Frozen, matrix: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
    """`diag(gain) W` of [..., d, n], the mean taken away first where the norm does that."""
    made = norm.gain.to(matrix.device, dtype)[:, None] * matrix.to(dtype)
    return made.sub_(made.mean(-2, keepdim=True)) if norm.centred else made
