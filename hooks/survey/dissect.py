"""Where the tensors of one block are, found by arithmetic on one traced run of it.

A block is a chain of stages: its attentions, then its MLP. Stage t adds a write to the residual, `r_{t+1} = r_t +
w_t` (pre-norm) or `r_{t+1} = norm(r_t + w_t)` (post-norm). Every candidate for r and w is the argument or output of
some module, so the equation is tried on all of them and must hold bit for bit. A gate or multiplier between the
module and the residual (`r + c w`) leaves r found and w known only as a difference, which is said.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from interp.hooks.anatomy.towers import Port, Reader
from interp.hooks.stand.output import outer_tensor

PARALLEL = "its attention and MLP read the same residual in parallel, so there is no residual between them"
RESIDUAL = ("resid_pre", "resid_mid", "resid_mid2", "resid_post", "attn_write", "mlp_write")
ZERO = "the residual is all zeros between its stages, so its tensor cannot be found"
UNFOUND = "no tensor in the block equals the residual plus a module's output"
EXPERTS = "its MLP is a mixture of experts"
BARE = "no module around its attention runs as often as the attention, so no module has its input and output"
STREAMS = (
    "its residual is several parallel streams (AltUp, hyper-connections), so it is not one tensor [batch, position, d]"
)


PICTURE = "its residual is a picture [batch, d, row, column], so it is not a tensor [batch, position, d]"
APART = "its z is read by several projections, or by one that also reads other numbers"


@dataclass
class Event:
    """One call of one module: when it was entered and left, with what, and what came out."""

    name: str
    module: nn.Module
    entered: int
    inputs: dict[int | str, Any]
    output: Any = None
    left: int = 0
    calls_before: dict[str, int] = field(default_factory=dict)
    beside: dict[int | str, Tensor] = field(default_factory=dict)
    """What came out, by its place, where that were several tensors [row, position, d]."""


@dataclass
class Stage:
    """What was found in one block."""

    ports: dict[str, Port]
    missing: dict[str, str]
    out: dict[str, str]
    width: int
    attention_ports: dict[str, dict[str, Port]]
    readers: dict[str, tuple[Reader, ...]] = field(default_factory=dict)
    words: dict[str, Stage] = field(default_factory=dict)
    """By attention, the stage of the words where they are a stream of their own (`hooks/survey/denoising.py`)."""

    def ports_of(self, attention: str) -> dict[str, Port]:
        """The ports of the layer that this attention makes: the block's, and its own."""
        return {**self.ports, **self.attention_ports.get(attention, {})}


def answering(inputs: Mapping[int | str, Any], output: Any) -> tuple[int | str | None, Tensor]:
    """The same, where several come out: the first that has the shape of what went in. Blocks of two streams give both,
    in either order."""
    read = first_tensor(inputs)
    if read is not None and isinstance(output, (tuple, list)):
        for key, made in enumerate(output):
            if torch.is_tensor(made) and made.shape == read[1].shape and made.dtype == read[1].dtype:
                return key, made
    return outer_tensor(output)


def first_tensor(inputs: Mapping[int | str, Any]) -> tuple[int | str, Tensor] | None:
    """The first floating tensor among the arguments."""
    for key in ("hidden_states", *inputs):
        value = inputs.get(key)
        if torch.is_tensor(value) and value.is_floating_point():
            return key, value
    return None


def dissect(
    block: str, event: Event, events: list[Event], heads: Mapping[str, Tensor | None], known: Mapping[str, str]
) -> Stage:
    """Name the ports of one block. `heads` has z of each attention in it, None where the interface did not show it;
    then `known` names its output projection. Modules that ran more than once name no single tensor and are passed
    over."""
    once = Counter(e.name for e in events)
    events = sorted((e for e in events if once[e.name] == 1), key=lambda e: e.entered)
    leaves = [e for e in events if _multiplies(e.module) and e.name != block and first_tensor(e.inputs) is not None]
    read = first_tensor(event.inputs)
    key, post = outer_tensor(event.output)
    ports = {"resid_post": Port(block, "out", key)}
    if read is not None:
        ports["resid_pre"] = Port(block, "in", read[0])
    readers = {name: found for name, z in heads.items() if (found := readers_of(z, leaves))}
    outs = {
        name: None if name in readers else _projection(name, z, leaves, events, known.get(name))
        for name, z in heads.items()
    }
    units = {name: _unit_of(name, leaves) for name in heads}
    names = {n: o.name for n, o in outs.items() if o is not None}
    stage = Stage(ports, {}, names, post.shape[-1] if post.ndim else 0, {}, readers)
    mlp = [e for e in leaves if not any(_within(e, units[n]) for n in heads) and e.name not in stage.out.values()]
    for name in heads:
        stage.attention_ports[name] = _attention_ports(name, events, leaves, outs[name], heads[name])
    _mlp_ports(stage, block, events, mlp, 0 if read is None else read[1][..., 0].numel())
    if read is not None and (reason := _no_residual(read[1], leaves)) is not None:
        for component in ("resid_pre", "resid_post"):
            stage.ports.pop(component)
        stage.missing |= dict.fromkeys(RESIDUAL, reason)
        stage.width = read[1].shape[1] if reason == PICTURE else stage.width
    elif block in heads:
        for component in ("resid_pre", "resid_post"):
            stage.ports.pop(component, None)
        stage.missing |= dict.fromkeys((*RESIDUAL, "mlp_in", "mlp_out", "mlp_write", "neurons"), BARE)
    elif read is not None:
        _residuals(stage, block, read[1], post, events, [outs[n] for n in heads], list(heads), mlp)
    return stage


def _no_residual(pre: Tensor, leaves: list[Event]) -> str | None:
    """Why what a block reads is no residual: it carries a dimension that none of its matrices sees, not even folded
    into another, or has its channels before its rows and columns."""
    read = [found[1] for e in leaves if (found := first_tensor(e.inputs)) is not None]
    if pre.ndim != 4 or not read or any(x.numel() == pre.numel() and x.shape[-1] == pre.shape[-1] for x in read):
        return None
    if all(x.ndim < 4 for x in read):
        return STREAMS
    return PICTURE if any(x.numel() == pre.numel() and x.shape[-1] == pre.shape[1] for x in read) else None


def _multiplies(module: nn.Module) -> bool:
    if isinstance(module, nn.Embedding):
        return False
    return hasattr(module, "base_layer") or any(p.ndim >= 2 for p in module.parameters(recurse=False))


def _within(event: Event, name: str) -> bool:
    return event.name == name or event.name.startswith(name + ".")


def _unit_of(attention: str, leaves: list[Event]) -> str:
    """The attention with what belongs to it; the module that makes the call, if it holds projections, else its
    parent."""
    own = [e for e in leaves if e.name.startswith(attention + ".")]
    return attention if own else attention.rpartition(".")[0]


def _projection(
    attention: str, z: Tensor | None, leaves: list[Event], events: list[Event], known: str | None
) -> Event | None:
    """The first matrix whose input is z, bit for bit, of those that run after the attention: numbers that are all zero
    are alike before it too. Else, behind a gate, the next one of that width."""
    if z is None:
        return next((e for e in events if e.name == known), None)
    flat = z.reshape(-1)
    width = z.shape[-1] * z.shape[-2]
    for event in sorted(leaves, key=lambda e: e.calls_before.get(attention, 0) == 0):
        read = first_tensor(event.inputs)
        if read is not None and read[1].numel() == flat.numel() and torch.equal(read[1].reshape(-1), flat):
            return event
    return _behind_a_gate(attention, width, leaves, events)


def readers_of(z: Tensor | None, leaves: list[Event]) -> tuple[Reader, ...]:
    """Matrices that read a run of z's positions from one end, or z together with other numbers; none where one reads
    all."""
    found: list[Reader] = []
    if z is None or z.ndim != 4:
        return ()
    flat, length = z.flatten(2), z.shape[1]
    for event in leaves:
        read = first_tensor(event.inputs)
        if read is None or read[1].ndim != 3 or len(read[1]) != len(z) or not read[1].numel():
            continue
        x, positions, width = read[1], read[1].shape[1], flat.shape[-1]
        if torch.equal(x.reshape(-1), flat.reshape(-1)):
            return ()
        if positions < length and x.shape[-1] == width:
            if torch.equal(flat[:, :positions], x):
                found.append(Reader(event.name, "first"))
            elif torch.equal(flat[:, length - positions :], x):
                found.append(Reader(event.name, "last"))
        elif positions == length and x.shape[-1] > width and torch.equal(x[..., :width], flat):
            found.append(Reader(event.name, "all"))
    return tuple(found)


def _behind_a_gate(attention: str, width: int, leaves: list[Event], events: list[Event]) -> Event | None:
    """Of the matrices of that width that run later: the one whose output the attention gives, else the first that does
    not read what the attention was given, as a gate does."""
    own = next((e for e in events if e.name == attention), None)
    later = [e for e in leaves if e.calls_before.get(attention, 0) > 0]
    wide = [(e, read[1]) for e in later if (read := first_tensor(e.inputs)) is not None and read[1].shape[-1] == width]
    if own is not None:
        gives = outer_tensor(own.output)[1]
        given = [x for x in own.inputs.values() if torch.is_tensor(x)]
        last = [e for e, _ in wide if _same(outer_tensor(e.output)[1], gives)]
        wide = [(e, read) for e, read in wide if e in last or not any(_same(read, x) for x in given)]
        if last:
            return last[-1]
    return wide[0][0] if wide else None


def _same(one: Tensor, other: Tensor) -> bool:
    return one.numel() == other.numel() and one.dtype == other.dtype and torch.equal(one.flatten(), other.flatten())


def _attention_ports(
    name: str, events: list[Event], leaves: list[Event], out: Event | None, z: Tensor | None
) -> dict[str, Port]:
    ports = {}
    call = next((e for e in events if e.name == name), None)
    first = next((e for e in leaves if e.name.startswith(name + ".")), None)
    if call is not None and (read := _same_argument(call, first)) is not None:
        ports["attn_in"] = Port(name, "in", read)
    if out is not None:
        ports["attn_out"] = Port(out.name, "out", outer_tensor(out.output)[0])
        read_by_out = first_tensor(out.inputs)
        if z is not None and read_by_out is not None and not torch.equal(read_by_out[1].reshape(-1), z.reshape(-1)):
            ports["z"] = Port(out.name, "in", read_by_out[0])
    return ports


def _same_argument(call: Event, first: Event | None) -> int | str | None:
    """Which argument of the attention is what its first projection reads."""
    read = first_tensor(first.inputs) if first is not None else None
    for key, value in call.inputs.items():
        if (
            torch.is_tensor(value)
            and read is not None
            and value.numel() == read[1].numel()
            and torch.equal(value.reshape(-1), read[1].reshape(-1))
        ):
            return key
    found = first_tensor(call.inputs)
    return found[0] if found is not None else None


def _mlp_ports(stage: Stage, block: str, events: list[Event], mlp: list[Event], positions: int) -> None:
    if not mlp:
        stage.missing |= dict.fromkeys(("mlp_in", "mlp_out", "mlp_write", "neurons"), "it has no MLP")
        return
    whole = _common(block, [e.name for e in mlp])
    if whole is None and (beside := _beside(block, mlp)):
        reason = (
            f"its block has matrices besides the MLP ({', '.join(beside)}), so it is not certain which of them is the"
            " MLP"
        )
        stage.missing |= dict.fromkeys(("mlp_in", "mlp_out", "neurons"), reason)
        return
    module = next((e for e in events if e.name == whole), None) if whole else None
    experts = module is not None and any(p.ndim >= 3 for p in module.module.parameters())
    experts = experts or (module is not None and any("expert" in n.lower() for n, _ in module.module.named_modules()))
    reader, writer = module or mlp[0], module or mlp[-1]
    if (read := first_tensor(reader.inputs)) is not None:
        stage.ports["mlp_in"] = Port(reader.name, "in", read[0], folded=read[1].ndim == 2)
    key, wrote = outer_tensor(writer.output)
    stage.ports["mlp_out"] = Port(writer.name, "out", key, folded=wrote.ndim == 2)
    if wrote[..., 0].numel() != positions:
        for component in ("mlp_in", "mlp_out"):
            stage.ports.pop(component, None)
        stage.missing |= dict.fromkeys(
            ("mlp_in", "mlp_out", "neurons"), "its MLP runs on some of the positions at a time"
        )
    elif experts:
        stage.missing["neurons"] = EXPERTS
    elif (last := first_tensor(mlp[-1].inputs)) is not None:
        stage.ports["neurons"] = Port(mlp[-1].name, "in", last[0], folded=last[1].ndim == 2)


def _beside(block: str, mlp: list[Event]) -> list[str]:
    """Parts of the block that hold matrices outside its largest part (per-layer inputs, LAuReL, a shared expert)."""
    parts = Counter(e.name[len(block) + 1 :].partition(".")[0] for e in mlp)
    (_, count), *rest = parts.most_common()
    return [name for name, _ in rest] if count > 1 else []


def _common(block: str, names: list[str]) -> str | None:
    """The innermost module below the block that holds all of these, if there is one."""
    split = [n[len(block) + 1 :].split(".")[:-1] for n in names]
    shared = []
    for parts in zip(*split, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return f"{block}.{'.'.join(shared)}" if shared else None


@dataclass(frozen=True)
class _Candidate:
    when: int
    port: Port
    tensor: Tensor


def _residuals(
    stage: Stage,
    block: str,
    pre: Tensor,
    post: Tensor,
    events: list[Event],
    outs: list[Event | None],
    names: list[str],
    mlp: list[Event],
) -> None:
    """Follow the residual through the stages; write down where it and the writes are, or why they cannot be told."""
    writers: list[Event] = [o for o in outs if o is not None] + ([_last_left(mlp)] if mlp else [])
    if None in outs:
        reason = APART if stage.readers else "its output projection was not found"
        stage.missing |= dict.fromkeys(("resid_mid", "attn_write"), reason)
        return
    chain = _follow(pre, writers, mlp, events, block, post)
    if chain is None:
        parallel = _is_parallel(pre, post, outs, mlp, stage, events)
        reason = PARALLEL if parallel else UNFOUND
        stage.missing |= {"resid_mid": reason}
        if parallel:
            _parallel_writes(stage, names)
        else:
            stage.missing |= {"attn_write": reason, "mlp_write": reason}
        return
    if any(not bool(step.residual.tensor.any()) for step in chain):
        stage.missing |= dict.fromkeys(("resid_mid", "attn_write", "mlp_write"), ZERO)
        return
    mids = [step.residual.port for step in chain[: len(names)]]
    if not mlp:
        mids = mids[:-1]
    for component, port in zip(("resid_mid", "resid_mid2"), mids, strict=False):
        stage.ports[component] = port
    before = stage.ports["resid_pre"]
    for name, step in zip(names, chain, strict=False):
        stage.attention_ports[name]["attn_write"] = step.write or replace(step.residual.port, minus=before)
        before = step.residual.port
    if mlp:
        stage.ports["mlp_write"] = chain[-1].write or replace(chain[-1].residual.port, minus=before)
    whole, write = stage.ports.get("mlp_out"), chain[-1].write
    if mlp and whole is not None and write is not None and write.module.startswith(whole.module + "."):
        stage.ports["mlp_out"] = Port(mlp[-1].name, "out", outer_tensor(mlp[-1].output)[0])
    if not mlp:
        stage.missing["resid_mid"] = "it has no MLP, so what follows the attention is resid_post"


def _last_left(events: list[Event]) -> Event:
    return max(events, key=lambda e: e.left)


@dataclass(frozen=True)
class _Step:
    residual: _Candidate
    write: Port | None


def _follow(
    residual: Tensor, writers: list[Event], mlp: list[Event], events: list[Event], block: str, post: Tensor
) -> list[_Step] | None:
    """Depth first: each way the next residual can be made, until the last one is the block's output."""
    if not writers:
        return [] if torch.equal(residual, post) else None
    begin = writers[0].left
    end = _next_start(writers, mlp, events, block)
    for sum_, write in _sums(residual, begin, end, events):
        for after in (sum_, *_normed(sum_, end, events)):
            rest = _follow(after.tensor, writers[1:], mlp, events, block, post)
            if rest is not None:
                return [_Step(after, write), *rest]
    return None


def _next_start(writers: list[Event], mlp: list[Event], events: list[Event], block: str) -> int:
    """When the next stage's first matrix has been entered; the end of the block for the last stage."""
    if len(writers) == 1:
        return next(e.left for e in events if e.name == block)
    if len(writers) == 2 and mlp:
        return min(e.entered for e in mlp)
    return writers[1].entered


def _tensors(begin: int, end: int, events: list[Event]) -> Iterator[_Candidate]:
    for event in events:
        if begin <= event.entered <= end and (read := first_tensor(event.inputs)) is not None:
            yield _Candidate(event.entered, Port(event.name, "in", read[0], in_place=True), read[1])
        if begin <= event.left <= end:
            key, made = outer_tensor(event.output)
            yield _Candidate(event.left, Port(event.name, "out", key), made)


def _sums(residual: Tensor, begin: int, end: int, events: list[Event]) -> Iterator[tuple[_Candidate, Port | None]]:
    """Tensors that are the residual plus something a module made since, exact sums before scaled ones."""
    same = [like for c in _tensors(begin, end, events) if (like := _like(c, residual)) is not None]
    made = [c for c in same if c.port.side == "out"]
    for candidate in sorted(same, key=lambda c: (c.when, c.port.side)):
        writes = [
            w
            for w in made
            if w.when <= candidate.when
            and w.port != candidate.port
            and torch.equal(residual + w.tensor, candidate.tensor)
        ]
        if writes:
            yield candidate, max(writes, key=lambda w: w.when).port
    for candidate in sorted(same, key=lambda c: (c.when, c.port.side)):
        if any(
            _multiple(candidate.tensor, residual, w.tensor)
            for w in made
            if w.when <= candidate.when and w.port != candidate.port
        ):
            yield candidate, None


def _like(candidate: _Candidate, residual: Tensor) -> _Candidate | None:
    """The candidate in the residual's shape, if it is that, or that with batch and position folded into one (OPT)."""
    tensor = candidate.tensor
    if tensor.shape == residual.shape and tensor.dtype == residual.dtype:
        return candidate
    if tensor.numel() != residual.numel() or tensor.dtype != residual.dtype or tensor.shape[-1] != residual.shape[-1]:
        return None
    return replace(candidate, port=replace(candidate.port, folded=True), tensor=tensor.reshape(residual.shape))


def _multiple(sum_: Tensor, residual: Tensor, write: Tensor) -> bool:
    """Whether sum minus residual is the write times one number: in all (a gate), per channel (layer scale), or per
    position."""
    t, r, w = sum_.double(), residual.double(), write.double()
    d, eps = t - r, 4 * torch.finfo(sum_.dtype).eps
    every = tuple(range(d.ndim))
    for axes in (every, every[:-1], every[-1:]):
        norm = (w * w).sum(axes, keepdim=True)
        c = (d * w).sum(axes, keepdim=True) / norm.clamp(min=1e-30)
        if bool(((d - c * w).abs() <= eps * (t.abs() + r.abs() + (c * w).abs())).all()) and float(c.abs().max()) > 1e-3:
            return True
    return False


def _normed(sum_: _Candidate, end: int, events: list[Event]) -> Iterator[_Candidate]:
    """Outputs of the module that reads the sum, for blocks that normalise after adding."""
    for event in events:
        read = first_tensor(event.inputs)
        if (
            read is not None
            and event.left <= end
            and event.entered >= sum_.when
            and read[1].shape == sum_.tensor.shape
            and torch.equal(read[1], sum_.tensor)
        ):
            key, made = outer_tensor(event.output)
            if made.shape == sum_.tensor.shape and not _multiplies(event.module):
                yield _Candidate(event.left, Port(event.name, "out", key), made)


def _is_parallel(
    pre: Tensor, post: Tensor, outs: list[Event | None], mlp: list[Event], stage: Stage, events: list[Event]
) -> bool:
    if len(outs) != 1 or outs[0] is None or not mlp or "mlp_out" not in stage.ports:
        return False
    whole = stage.ports["mlp_out"]
    wrote = next(outer_tensor(e.output)[1] for e in events if e.name == whole.module)
    if wrote.numel() != pre.numel() or outer_tensor(outs[0].output)[1].numel() != pre.numel():
        return False
    parts = [t.double().reshape(pre.shape) for t in (pre, outer_tensor(outs[0].output)[1], wrote)]
    bound = 8 * torch.finfo(post.dtype).eps * sum(part.abs() for part in parts)
    return bool(((sum(parts) - post.double()).abs() <= bound).all())


def _parallel_writes(stage: Stage, names: list[str]) -> None:
    for name in names:
        stage.attention_ports[name]["attn_write"] = stage.attention_ports[name]["attn_out"]
    stage.ports["mlp_write"] = stage.ports["mlp_out"]
