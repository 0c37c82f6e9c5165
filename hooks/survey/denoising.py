"""The towers of a denoiser: its stacks are one sequence of layers, whatever lists they are written in.

Joint and single blocks of one sequence (Flux, AuraFlow, HunyuanVideo) are one tower `denoiser`, numbered as they run;
so are all levels of a U-Net. Attention to words from cells is `cross`; layers that see words alone, before the denoiser
reads them, are `text`. Words that have their own residual in addition to that of the cells (SD3, Flux) are the tower
`words`, whose z is their part of the joint one. Whatever attends over another part of the tokens (a second attention
over cells alone) is a tower of its own.

Blocks that carry two residuals, of words and of the picture's cells, which meet in one attention.

    [z_words, z_cells] = attend([q_words, q_cells], [k_words, k_cells], [v_words, v_cells])    in either order

and each stream has projections, norms and an MLP of its own (SD3, Flux, Qwen-Image). A stream is found by its length:
the block is given two tensors whose positions add up to those of z, and what reads or gives as many positions as one of
them is that stream's. Each is then analysed as a separate block, with its part of z (`hooks/survey/dissect.py`).
Limits: streams of one length cannot be separated, and are taken as one; where one module works on both at once
(CogVideoX, Flux's single blocks), a stream has its residual before and after the block and nothing between.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from interp.hooks.anatomy.towers import Anatomy, Layer, Port, Tower
from interp.hooks.denoisers.layout import Layout, layout
from interp.hooks.errors import UnknownPositions
from interp.hooks.stand.output import outer_tensor
from interp.hooks.survey.attending import Seen
from interp.hooks.survey.dissect import Event, Stage, dissect, first_tensor
from interp.hooks.survey.loops import Turns

OF_BOTH = "it is of words and cells together: name it in the tower 'denoiser'"
JOINT = dict.fromkeys(("q", "k", "v", "pattern", "scores", "attention"), OF_BOTH)
BOTH = "one module of its block works on words and cells at once"
INNER = ("attn_in", "attn_out", "attn_write", "resid_mid", "mlp_in", "mlp_out", "mlp_write", "neurons", "z")


def stacks_of(root: nn.Module, seen: Sequence[Seen], inputs: Mapping[str, Any]) -> dict[str, list[Seen]]:
    """The members of each tower by its name, of what was seen in the order it ran."""
    sizes = "UNet" in type(root).__name__  # attends at several sizes of one picture
    groups: dict[tuple[bool, int | None], list[Seen]] = {}
    for one in seen:
        groups.setdefault((one.cross, None if sizes else one.length), []).append(one)
    tokens = _tokens(root, inputs)
    found: dict[str, list[Seen]] = {}
    for (cross, length), members in sorted(groups.items(), key=lambda item: -len(item[1])):
        for part in _apart(members):
            found[_free(_called(tokens, length, cross=cross), found)] = part
    return found


def _tokens(root: nn.Module, inputs: Mapping[str, Any]) -> Layout | None:
    """The tokens of the traced call, where they are known."""
    try:
        return layout(root, inputs)
    except UnknownPositions:
        return None


def _called(tokens: Layout | None, length: int | None, *, cross: bool) -> str:
    """What layers over so many tokens are called."""
    words = None if tokens is None or tokens.apart else tokens.words
    if words is not None and length is not None and length <= words.shape[1]:
        return "text"
    return "cross" if cross else "denoiser"


def _apart(members: Sequence[Seen]) -> list[list[Seen]]:
    """Parallel attentions of one block are different stacks."""
    count: Counter[str] = Counter()
    parts: list[list[Seen]] = []
    for one in members:
        block = one.name.rpartition(".")[0]
        count[block] += 1
        if len(parts) < count[block]:
            parts.append([])
        parts[count[block] - 1].append(one)
    return parts


def _free(name: str, taken: Mapping[str, Any]) -> str:
    return name if name not in taken else f"{name}{sum(t.rstrip('0123456789') == name for t in taken) + 1}"


def words_of(anatomy: Anatomy, stages: Mapping[str, Turns]) -> Tower | None:
    """The tower of the words' own residual, where joint attention is between two: the layers of the denoiser that have
    one, under the same numbers."""
    layers: list[Layer] = []
    for layer in (layer for name, tower in anatomy.towers.items() if name == "denoiser" for layer in tower.layers):
        stage = stages[layer.block].stages[0].words.get(layer.attention)
        if stage is not None and layer.nth is None:
            out, ports = stage.out.get(layer.attention), stage.ports_of(layer.attention)
            missing = {**stage.missing, **JOINT}
            layers.append(replace(layer, out=out, ports=ports, missing=missing, readers=()))
    if not layers:
        return None
    return Tower("words", tuple(layers), stages[layers[0].block].stages[0].words[layers[0].attention].width, True)


@dataclass(frozen=True, eq=False)
class _Stream:
    """One of two residuals of a block: what it is given, and what it gives."""

    key: int | str
    tensor: Tensor
    out: int | str | None
    made: Tensor | None
    """None where the block gives none, as SD3's last does of the words."""

    @property
    def length(self) -> int:
        return int(self.tensor.shape[1])

    def part(self, z: Tensor, *, first: bool) -> Tensor:
        """Its positions of a joint z."""
        return z[:, : self.length] if first else z[:, z.shape[1] - self.length :]


def parted(
    block: str, event: Event, events: list[Event], heads: Mapping[str, Tensor | None], known: Mapping[str, str]
) -> Stage:
    """What was found in a block: of the stream that it is given first, the cells', with that of the words where there
    are two."""
    whole = dissect(block, event, events, heads, known)
    for name, z in heads.items():
        given = _given(event, z)
        if z is None or given is None:
            continue
        cells, words = given
        read = {e.name: first_tensor(e.inputs) for e in events}
        ends = {x[1].shape[1]: r.end for r in whole.readers.get(name, ()) if (x := read[r.module]) and r.end != "all"}
        if not ends:
            return replace(whole, words={} if words.made is None else {name: _ends(block, words)})
        first = ends.get(cells.length, "last") == "first" or ends.get(words.length) == "last"
        own = _alone(block, event, events, {**heads, name: cells.part(z, first=first)}, cells, known)
        other = None
        if words.made is not None:
            other = _alone(block, event, events, {name: words.part(z, first=not first)}, words, known)
        return _both(whole, own, other, name)
    return whole


def _given(event: Event, z: Tensor | None) -> tuple[_Stream, _Stream] | None:
    """The two residuals that a block is given and gives back, the first before the second."""
    if z is None or z.ndim != 4:
        return None
    given = [(key, x) for key, x in event.inputs.items() if _carries(x, len(z))]
    alone = dict([outer_tensor(event.output)])
    made = {x.shape: (key, x) for key, x in (event.beside or alone).items() if _carries(x, len(z))}
    read = first_tensor(event.inputs)
    given.sort(key=lambda one: read is None or one[0] != read[0])
    for other, y in given[1:]:
        main, x = given[0]
        if x.shape != y.shape and x.shape[1] + y.shape[1] == z.shape[1] and x.shape in made:
            return _Stream(main, x, *made[x.shape]), _Stream(other, y, *made.get(y.shape, (None, None)))
    return None


def _carries(x: object, rows: int) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point() and x.ndim == 3 and len(x) == rows


def _ends(block: str, stream: _Stream) -> Stage:
    """A stream of which nothing is seen inside the block."""
    ports = {"resid_pre": Port(block, "in", stream.key), "resid_post": Port(block, "out", stream.out)}
    return Stage(ports, dict.fromkeys(INNER, BOTH), {}, stream.tensor.shape[-1], {})


def _alone(
    block: str,
    event: Event,
    events: list[Event],
    heads: Mapping[str, Tensor | None],
    stream: _Stream,
    known: Mapping[str, str],
) -> Stage:
    """The block as it is for one stream: what reads or gives as many positions."""
    assert stream.made is not None
    made = stream.made if stream.out is None else {stream.out: stream.made}
    whole = replace(event, inputs={stream.key: stream.tensor}, output=made)
    others = [one for e in events if e is not event and (one := _of(e, stream.length)) is not None]
    mine = [*others, whole]
    return dissect(block, whole, mine, heads, known)


def _of(event: Event, length: int) -> Event | None:
    """A module's call with what has so many positions; None where that is nothing."""

    def fits(x: object) -> bool:
        return isinstance(x, Tensor) and x.ndim == 3 and x.shape[1] == length

    if (read := first_tensor(event.inputs)) is not None and fits(read[1]):
        return event
    inputs = {key: x for key, x in event.inputs.items() if fits(x)}
    made = {key: x for key, x in event.beside.items() if fits(x)}
    return replace(event, inputs=inputs, output=made) if inputs and made else None


def _both(whole: Stage, own: Stage, other: Stage | None, joint: str) -> Stage:
    """The cells' stage with the words'. A joint z has no one projection; that of the words is what theirs reads."""
    attention = {
        name: {**whole.attention_ports[name], **own.attention_ports.get(name, {})} for name in whole.attention_ports
    }
    cells = replace(
        own, out={n: out for n, out in own.out.items() if n != joint}, attention_ports=attention, readers=whole.readers
    )
    if other is None or joint not in other.out:
        return cells
    other.attention_ports[joint]["z"] = Port(other.out[joint], "in", 0)
    return replace(cells, words={joint: other})


def several(output: object) -> list[tuple[int, Tensor]]:
    """The tensors [row, position, d] that a module gives, by their place, where they are more than one."""
    made = list(enumerate(output)) if isinstance(output, (tuple, list)) else []
    found = [(n, x) for n, x in made if isinstance(x, Tensor) and x.is_floating_point() and x.ndim == 3]
    return found if len(found) > 1 else []
