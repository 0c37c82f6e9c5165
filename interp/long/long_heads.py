"""Attention over chosen chunks: every head reads a long text through as many tokens as it was trained for.

LongHeads (Lu et al. 2024, arXiv 2402.10685), as the authors' code computes it, for RoPE models without any training.
The text is cut into chunks of l tokens. Rows up to `keep` chunks attend as in the model; a later row i in chunk c
attends to `keep` chunks: the first, its own, the one before it, and of the others those with the largest q . r, where q
is the row's query without rotation and r represents a chunk. With Q, K, V of one chunk, rotated from 0 within it,

    u = mean over rows of softmax(Q K^T) V         (every row sees the whole chunk)
    r = softmax(u K^T) K

Chosen chunks are put side by side as if they were the text, so that no distance is longer than keep * l. Each head
chooses for itself, row by row; `.chosen` says what. Cost: the attention of the model and keep * l keys a row.
Limits: whole prompts in one call without a cache, all rows equally long and unpadded; rotations by halves over the
whole head (Llama, Mistral, Qwen, Gemma); not together with edits, patterns or statistics of attention.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.hooks.drive.intercept import Intercept, OwnTap
from interp.hooks.errors import InputsError, ModelError
from interp.hooks.head_names import layer_name
from interp.hooks.sites import Site
from interp.hooks.stand.call import Call
from interp.hooks.stand.part import Part
from interp.hooks.stand.program import Standing
from interp.long.needles import attention_sites
from interp.records import Method, Trial, register

if TYPE_CHECKING:
    from interp.model import Model

NUMBERS = 2**22
"""Numbers of keys that are gathered at once."""
LEAST = 3
"""The first chunk, the row's own, and the one before it."""


@dataclass
class Chosen:
    """By layer ("L1"), [batch, head, row, chunk]: the chunks each late row read in the last call, in order."""

    chunk: int
    """How many tokens a chunk has."""
    keep: int
    """How many chunks a late row reads."""
    chosen: dict[str, Tensor] = field(default_factory=dict)
    """By layer ("L1"), [batch, head, late row, chunk]: the numbers of the chunks, in order, in the last call."""

    @property
    def first_row(self) -> int:
        """The first row that chose."""
        return self.chunk * self.keep

    def share(self, layer: str, position: int, rows: Any = slice(None)) -> Tensor:
        """[head]: how often the chunk that holds a position was chosen, by the late rows that are asked about."""
        if layer not in self.chosen:
            raise InputsError(
                f"no row of {layer!r} had to choose: texts longer than {self.first_row} tokens do, in the layers"
                f" {', '.join(self.chosen) or 'that ran'}."
            )
        picked = self.chosen[layer][:, :, rows]
        return (picked == position // self.chunk).any(-1).double().mean((0, 2))


@contextmanager
def long_heads(model: Model, *, chunk: int = 256, keep: int = 16) -> Iterator[Chosen]:
    """While inside, every self-attention layer reads `keep` chunks of `chunk` tokens at most, in this thread."""
    if chunk < 1 or keep < LEAST:
        raise InputsError(f"chunk is at least 1 and keep at least {LEAST}, got {chunk} and {keep}.")
    sites = attention_sites(model)
    rotary = _rotary(model)
    found = Chosen(chunk, keep)
    with Intercept(model.module) as put:
        for site in sites:
            layer = model.anatomy.layer(site)
            if not layer.seen:
                raise ModelError(f"{site}: its attention call is not seen and cannot be replaced.")
            put.tap(layer, _Chunks(found, site, rotary))
        yield found


def _rotary(model: Model) -> Any:
    """The module that makes cosines and sines; refused where it rotates otherwise than by halves."""
    name = type(model.module).__name__
    home = sys.modules[type(model.module).__module__]
    halves = getattr(home, "rotate_half", None)
    found = [m for m in model.module.modules() if hasattr(m, "inv_freq")]
    probe = torch.arange(4.0)
    if len(found) != 1 or halves is None or not torch.equal(halves(probe), _turned(probe)):
        raise ModelError(
            "long_heads moves tokens by rotating queries and keys back. It can do that in models with one rotary"
            f" embedding that rotates halves (Llama, Mistral, Qwen, Gemma); {name} is not such a model."
        )
    return found[0]


class _Chunks(OwnTap):
    """Puts the program at every head, from the row on that sees more than is kept."""

    def __init__(self, found: Chosen, site: Site, rotary: Any) -> None:
        self.found, self.site, self.rotary = found, site, rotary

    def programs(self, call: Call) -> list[Standing]:
        _check(call, self.site)
        batch, heads, length, _ = call.q.shape
        if length <= self.found.first_row:
            return []
        late = torch.arange(length, device=call.q.device) >= self.found.first_row
        return [Standing(_Reading(self.found, self.site, self.rotary), tuple(range(heads)), "long_heads",
                         late.expand(batch, -1))]  # fmt: skip


@dataclass(frozen=True, eq=False)
class _Reading:
    """Attention of late rows over the chunks they choose."""

    found: Chosen
    site: Site
    rotary: Any

    def z(self, part: Part) -> Tensor:
        """The early rows are not its own and are left at 0."""
        chunk, keep = self.found.chunk, self.found.keep
        turn = Turns(self.rotary, part.q, part.k.shape[2])
        late, chosen = attend_chunks(part.q, part.k, part.v, turn, scale=part.scale, chunk=chunk, keep=keep)
        self.found.chosen[layer_name(self.site)] = chosen.cpu()
        return torch.nn.functional.pad(late, (0, 0, chunk * keep, 0))

    def pattern(self, part: Part) -> None:
        """None: keys are read at other positions than those they have."""


def _check(call: Call, site: Site) -> None:
    if call.q.shape[2] != call.k.shape[2]:
        raise InputsError(
            f"{site}: long_heads reads whole prompts, and this call has {call.q.shape[2]} queries for"
            f" {call.k.shape[2]} keys: call the model with use_cache=False."
        )
    if call.softcap is not None or call.sinks is not None or call.bias is not None or call.window is not None:
        raise ModelError(f"{site}: long_heads knows plain attention, without caps, sinks, biases and windows.")
    mask = call.mask
    if torch.is_tensor(mask) and mask.ndim == 4:
        last = mask[..., -1, :]
        if not bool(last.all() if last.dtype == torch.bool else (last == 0).all()):
            raise InputsError(f"{site}: long_heads needs unpadded rows of one length and no sliding window.")


class Turns:
    """Rotations by positions, forth and back."""

    def __init__(self, rotary: Any, like: Tensor, length: int) -> None:
        places = torch.arange(length, device=like.device)[None]
        self.cos, self.sin = (part[0].to(_wide(like)) for part in rotary(like.to(_wide(like)), places))
        if self.cos.shape[-1] != like.shape[-1]:
            raise ModelError("long_heads needs rotations of the whole head; this model turns a part of it.")

    def forth(self, x: Tensor, at: Tensor) -> Tensor:
        return x * self.cos[at] + _turned(x) * self.sin[at]

    def back(self, x: Tensor, at: Tensor) -> Tensor:
        size = self.cos[at] ** 2 + self.sin[at] ** 2
        return (x * self.cos[at] - _turned(x) * self.sin[at]) / size


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _turned(x: Tensor) -> Tensor:
    one, other = x.chunk(2, dim=-1)
    return torch.cat([-other, one], dim=-1)


def attend_chunks(
    q: Tensor, k: Tensor, v: Tensor, turn: Turns, *, scale: float, chunk: int, keep: int
) -> tuple[Tensor, Tensor]:
    """z [b, head, late row, d] and the chunks chosen [b, head, late row, keep], of rotated q, k [b, head, row, d]."""
    length, group = q.shape[2], q.shape[1] // k.shape[1]
    places = torch.arange(length, device=q.device)
    bare_q, bare_k = turn.back(q.to(_wide(q)), places), turn.back(k.to(_wide(k)), places)
    full = length // chunk
    pad = (0, 0, 0, -length % chunk)
    within = torch.arange(chunk, device=q.device)
    near_k = turn.forth(torch.nn.functional.pad(bare_k, pad).unflatten(2, (-1, chunk)), within)
    values = torch.nn.functional.pad(v.to(_wide(v)), pad).unflatten(2, (-1, chunk))
    near_k, values = (x.repeat_interleave(group, 1) for x in (near_k, values))
    near_q = turn.forth(bare_q[:, :, : full * chunk].unflatten(2, (-1, chunk)), within)
    stand = stand_ins(near_q, near_k[:, :, :full], values[:, :, :full], scale)
    z, chosen = [], []
    for own in range(keep, -(-length // chunk)):
        rows = bare_q[:, :, own * chunk : (own + 1) * chunk]
        picked = choose(rows, stand[:, :, 1 : own - 1], keep - LEAST)
        fixed = [picked.new_full((*picked.shape[:-1], 1), n) for n in (0, own - 1, own)]
        index = torch.cat([fixed[0], picked + 1, *fixed[1:]], dim=-1)
        step = max(1, NUMBERS // (near_k[:, :, 0].numel() * keep))
        for n in range(0, rows.shape[2], step):
            part = slice(n, n + step)
            z.append(_read(rows[:, :, part], index[:, :, part], n, near_k, values, turn, scale))
        chosen.append(index)
    return torch.cat(z, dim=2), torch.cat(chosen, dim=2)


def stand_ins(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """r [b, head, chunk, d] of chunks [b, head, chunk, row, d], rotated from 0 within each."""
    u = (torch.softmax(q @ k.transpose(-1, -2) * scale, -1) @ v).mean(-2, keepdim=True)
    return (torch.softmax(u @ k.transpose(-1, -2) * scale, -1) @ k).squeeze(-2)


def choose(q: Tensor, stand: Tensor, count: int) -> Tensor:
    """The `count` chunks of the largest q . r, in the order of the text: [b, head, row, count]."""
    return (q @ stand.transpose(-1, -2)).topk(count, dim=-1).indices.sort(-1).values


def _read(q: Tensor, index: Tensor, first: int, k: Tensor, v: Tensor, turn: Turns, scale: float) -> Tensor:
    """z [b, head, row, d] of rows of one chunk, from its row `first` on, over their chosen chunks, put side by side."""
    keep, chunk = index.shape[-1], k.shape[3]
    b, h = (torch.arange(n, device=q.device).view(-1, *[1] * dims) for n, dims in zip(q.shape[:2], (3, 2), strict=True))
    keys, values = (x[b, h, index] for x in (k, v))
    row = first + torch.arange(q.shape[2], device=q.device)
    away = (keep - 1 - torch.arange(keep, device=q.device))[None] * chunk + row[:, None]
    turned = turn.forth(q[:, :, :, None], away)
    scores = torch.einsum("bhisd,bhisod->bhiso", turned, keys) * scale
    late = torch.arange(chunk, device=q.device) > row[:, None]
    scores[..., -1, :] = scores[..., -1, :].masked_fill(late, -torch.inf)
    weights = torch.softmax(scores.flatten(-2), -1).view_as(scores)
    return torch.einsum("bhiso,bhisod->bhid", weights, values)


def _example(t: Trial) -> Tensor:
    with long_heads(t.reader, chunk=4, keep=3):
        logits: Tensor = t.reader.run(t.reader.prepare(t.texts[:1]))["logits"]
    return logits


register(
    Method(
        "interp.long.long_heads",
        number="the model's own logits, read with few keys a head",
        shown="none",
        needs=("needles",),
        unfit={
            "vit": "it reads no text",
            "lvlm": "its positions are rotated otherwise than it chooses keys",
            "encoder-decoder": "its positions are not rotated",
        },
        passes=lambda t: 2,
        values=None,
        example=_example,
    )
)
