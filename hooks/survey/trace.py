"""Find a model's towers, layers and heads by watching it work once, and where every tensor of a block is.

The attention calls give heads, kv heads and head sizes. Inside a block, the tensors at the borders of its modules are
compared with each other: the projection whose input is z is the output projection; the residual after a stage is the
tensor that equals residual before plus some module's output, bit for bit. No table of architectures is consulted. A
block that runs several times is looked at each time, and makes a layer a pass.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from threading import get_ident
from typing import Any

import torch
from torch import nn

from interp.hooks.anatomy.family import Family, family_of
from interp.hooks.anatomy.spread import spread
from interp.hooks.anatomy.towers import Anatomy, Layer, Port, Tower
from interp.hooks.denoisers.calls import denoises
from interp.hooks.inputs.sound import SOUND
from interp.hooks.stand.boundary import has
from interp.hooks.stand.output import note_length, outer_tensor
from interp.hooks.survey.attending import Seen, Watches, at_borders, learned
from interp.hooks.survey.denoising import parted, several, stacks_of, words_of
from interp.hooks.survey.dissect import Event, answering, first_tensor
from interp.hooks.survey.loops import Entries, Turns, numbered, passes_of, unit
from interp.hooks.unseen.guess import called_attention, guessed
from interp.hooks.unseen.named import nothing, refuse_slots, unheld
from interp.hooks.unseen.softmaxes import noted

CONNECTORS = ("multi_modal_projector", "connector", "visual.merger", "language_projection", "aligner")


def trace(module: nn.Module, inputs: Mapping[str, Any], *, family: Family | None = None) -> Anatomy:
    """What a model is made of; see `traced`."""
    return traced(module, inputs, family=family)[0]


def traced(
    module: nn.Module, inputs: Mapping[str, Any], *, family: Family | None = None
) -> tuple[Anatomy, Family | None]:
    """Two forward passes on `inputs`: one to see who attends, one to see where the tensors of each block are. With it
    comes the family that says where heads are, or the one that the model was found to behave like."""
    family = family or family_of(module)
    watch, entries = Watches(module), Entries(module)
    with watch.on(), noted(module, inputs) as softmaxes, entries.on():
        _forward(module, inputs)
    family = family if watch.seen or family else guessed(module, inputs, softmaxes.names or called_attention(module))
    borders = dict(at_borders(module, family)) if family and (denoises(module) or not watch.seen) else {}
    seen = {name: one for name, one in borders.items() if name in softmaxes.ran}
    if watch.seen:  # of a denoiser's block one attention may be fused and the other linear
        seen = {**(borders if denoises(module) else {}), **watch.seen}
    apart = learned(module, seen)
    seen = {name: one for name, one in seen.items() if name not in apart}
    if not seen:
        raise nothing(module, softmaxes)
    refuse_slots(module, seen)
    blocks = {name: unit(name, _block(module, name, seen), entries.count) for name in seen}
    known = {s.name: f"{s.name}.{family.out}" for s in seen.values() if family and s.standpoint == "border"}
    events = _events(module, inputs, set(blocks.values()), watch, seen, known)
    made = _assemble(module, seen, blocks, events, family, inputs)
    made = replace(made, unheld={**unheld(module, softmaxes, seen, set(blocks.values())), **apart})
    return spread(module, made), family


def _forward(module: nn.Module, inputs: Mapping[str, Any]) -> None:
    with torch.no_grad():
        note_length(module, inputs, module(**inputs))


def _matrices(module: nn.Module) -> bool:
    """Whether a module multiplies by a matrix of its own."""
    if isinstance(module, nn.Embedding):
        return False
    return any(p.ndim >= 2 for p in module.parameters(recurse=False)) or hasattr(module, "base_layer")


def _block(root: nn.Module, attention: str, seen: Mapping[str, Seen]) -> str:
    """The element of a module list that holds this attention and the rest of its block."""
    parts = attention.split(".")
    prefixes = [".".join(parts[:n]) for n in range(len(parts), 0, -1)]
    listed = [p for p in prefixes if p.rpartition(".")[2].isdigit()]
    for prefix in listed:
        inside = [name for name, child in root.get_submodule(prefix).named_modules(prefix=prefix) if _matrices(child)]
        unit = _unit(root, attention, prefix)
        others = [name for name in inside if not any(name.startswith(s + ".") or name == s for s in (attention, unit))]
        if others:
            return prefix
    return listed[0] if listed else attention.rpartition(".")[0]


def _unit(root: nn.Module, attention: str, prefix: str) -> str:
    """BERT keeps the call in `attention.self` and the projection in `attention.output`: the unit is `attention`."""
    inside = attention[len(prefix) + 1 :].split(".")
    return (
        f"{prefix}.{inside[0]}"
        if len(inside) > 1 and not inside[0].isdigit() and not inside[1].isdigit()
        else attention
    )


class _Recorder:
    """Keeps the tensors at the borders of every module of the block that is running, and of the norms between
    blocks, all on one device, so that they can be compared where a model is on several."""

    def __init__(self, home: torch.device) -> None:
        self.home, self.thread = home, get_ident()
        self.clock = 0
        self.inside: dict[str, list[Event]] = defaultdict(list)
        self.stack: list[str] = []
        self.norms: list[Event] = []

    def tick(self) -> int:
        self.clock += 1
        return self.clock

    def copy(self, value: Any) -> Any:
        """Blocks add in place behind the hooks' back (Falcon), so what was seen is kept as it was."""
        return value.to(self.home, copy=True) if torch.is_tensor(value) and value.is_floating_point() else value


def _events(
    root: nn.Module,
    inputs: Mapping[str, Any],
    blocks: set[str],
    watch: Watches,
    seen: dict[str, Seen],
    known: Mapping[str, str],
) -> dict[str, Turns]:
    recorder = _Recorder(next((v.device for v in inputs.values() if torch.is_tensor(v)), torch.device("cpu")))
    found: dict[str, Turns] = {}
    with watch.on(keep=True), ExitStack() as undo:
        for name, child in root.named_modules():
            inside = [b for b in blocks if name == b or name.startswith(b + ".")]
            owner = max(inside, key=len) if inside else None
            if owner is None and "norm" not in type(child).__name__.lower() and "norm" not in name.lower():
                continue
            _listen(child, name, owner, recorder, found, seen, watch, undo, known)
        _forward(root, inputs)
    return {block: replace(turns, norm=_norm_after(recorder.norms, turns.last)) for block, turns in found.items()}


def _listen(
    child: nn.Module,
    name: str,
    owner: str | None,
    recorder: _Recorder,
    found: dict[str, Turns],
    seen: Mapping[str, Seen],
    watch: Watches,
    undo: ExitStack,
    known: Mapping[str, str],
) -> None:
    open_events: list[Event] = []

    def enter(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if get_ident() != recorder.thread:
            return
        given: dict[int | str, Any] = dict(enumerate(args))
        given.update(kwargs)
        event = Event(name, child, recorder.tick(), {key: recorder.copy(value) for key, value in given.items()})
        event.calls_before = {s: len(watch.seen[s].z) for s in seen if s in watch.seen} if owner is not None else {}
        open_events.append(event)

    def leave(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if get_ident() != recorder.thread:
            return
        event = open_events.pop()
        key, made = answering(event.inputs, output)
        kept = made.to(recorder.home, copy=True)
        event.left, event.output = recorder.tick(), kept if key is None else {key: kept}
        event.beside = {n: recorder.copy(x) for n, x in several(output)}
        if owner is None:
            recorder.norms.append(event)
            return
        recorder.inside[owner].append(event)
        if name == owner:
            _finish(owner, event, recorder, found, seen, watch, known)
            found[owner].last = Event(name, child, event.entered, {}, output=made, left=event.left)

    undo.callback(child.register_forward_pre_hook(enter, with_kwargs=True, prepend=False).remove)
    undo.callback(child.register_forward_hook(leave, with_kwargs=True).remove)


def _finish(
    block: str,
    event: Event,
    recorder: _Recorder,
    found: dict[str, Turns],
    seen: Mapping[str, Seen],
    watch: Watches,
    known: Mapping[str, str],
) -> None:
    mine = [s for s in seen.values() if s.name == block or s.name.startswith(block + ".")]
    events = recorder.inside.pop(block)
    pieces = {s.name: [z.to(recorder.home) for z in s.z] for s in watch.seen.values() if s in mine and s.z}
    several = {name: some for name, some in pieces.items() if numbered(some, events)}
    heads = {s.name: None if s.name not in pieces else _together(pieces[s.name], s.name in several) for s in mine}
    turns = found.setdefault(block, Turns())
    turns.stages.append(parted(block, event, events, heads, known))
    turns.entered.append(event.entered)
    turns.calls.append({name: len(some) for name, some in several.items()})
    for s in mine:
        if s.name in watch.seen:
            watch.seen[s.name].z.clear()


def _together(pieces: list[torch.Tensor], several: bool) -> torch.Tensor:
    """z of one run of a block: of images one after the other, or of the last of several calls."""
    return pieces[-1] if several else torch.cat(pieces, dim=1)


def _norm_after(norms: list[Event], block: Event) -> Event | None:
    """The first norm outside the blocks that reads this block's output."""
    for event in sorted(norms, key=lambda e: e.entered):
        read = first_tensor(event.inputs)
        if (
            event.entered > block.left
            and read is not None
            and read[1].shape == block.output.shape
            and torch.equal(read[1], block.output.to(read[1].device))
        ):
            return event
    return None


def _assemble(
    root: nn.Module,
    seen: Mapping[str, Seen],
    blocks: Mapping[str, str],
    stages: Mapping[str, Turns],
    family: Family | None,
    inputs: Mapping[str, Any],
) -> Anatomy:
    if denoises(root):
        ran = {block: n for n, block in enumerate(stages)}
        found = stacks_of(root, sorted(seen.values(), key=lambda s: ran[blocks[s.name]]), inputs)
        made = {name: _tower(root, name, name, some, blocks, stages, family) for name, some in found.items()}
        anatomy = _joined(made, root)
        words = words_of(anatomy, stages)
        return anatomy if words is None else anatomy.renamed(words=words)
    pictured = _pictured(root, inputs)
    stacks: dict[str, list[Seen]] = defaultdict(list)
    for s in seen.values():
        template = re.sub(r"\.\d+(?=\.|$)", ".*", blocks[s.name])
        first = next(o for o in seen.values() if blocks[o.name] == blocks[s.name])
        beside = s.cross and not first.cross
        alike = [o for o in seen.values() if blocks[o.name] == blocks[s.name] and o.cross == s.cross]
        nth = f" {alike.index(s) + 1}" if alike.index(s) else ""
        stacks[template + nth + (" cross" if beside else "")].append(s)
    towers: dict[str, Tower] = {}
    for template, members in sorted(stacks.items(), key=lambda item: len(item[1]) == 1):
        name = _tower_name(root, template, members, taken=towers, pictured=pictured)
        towers[name] = _tower(root, name, template, members, blocks, stages, family)
    return _joined(towers, root)


def _joined(towers: dict[str, Tower], root: nn.Module) -> Anatomy:
    """The towers of one model; where two have a block in common the residual is the first one's, never `cross`'s."""
    owned: dict[str, Tower] = {}
    for name in sorted(towers, key=lambda name: name.startswith("cross")):
        if name.startswith(("cross", "denoiser")):
            towers[name] = _beside(towers[name], owned)
        owned[name] = towers[name]
    return Anatomy(towers, _main(towers), _connector(root))


def _tower(
    root: nn.Module,
    name: str,
    template: str,
    members: list[Seen],
    blocks: Mapping[str, str],
    stages: Mapping[str, Turns],
    family: Family | None,
) -> Tower:
    order = _numbers(root, template, members, blocks)
    layers = []
    for s in members:
        turns, number = stages[blocks[s.name]], order[blocks[s.name]]
        recipe_ports, missing = _heads_at_the_border(root, s, family)
        for stage in turns.stages:
            ports = {**stage.ports_of(s.name), **recipe_ports}
            layers.append(
                Layer(
                    number,
                    blocks[s.name],
                    s.name,
                    "cross" if s.cross else "self",
                    s.heads,
                    s.kv_heads,
                    s.d_head,
                    s.d_value,
                    stage.out.get(s.name) or _named_out(s, family),
                    s.standpoint,
                    ports,
                    {**stage.missing, **missing},
                    s.implementation,
                    readers=stage.readers.get(s.name, ()),
                )
            )
    layers = passes_of(layers, stages)
    turns = stages[layers[-1].block]
    final = Port(turns.norm.name, "out", outer_tensor(turns.norm.output)[0]) if turns.norm is not None else None
    skipped = tuple(sorted(set(_siblings(root, template)) - set(order.values()))) if template.count("*") == 1 else ()
    return Tower(
        name,
        tuple(layers),
        turns.stages[-1].width,
        any(s.bidirectional for s in members),
        final,
        skipped,
    )


def _named_out(s: Seen, family: Family | None) -> str | None:
    return f"{s.name}.{family.out}" if family and s.standpoint == "border" else None


def _beside(cross: Tower, towers: Mapping[str, Tower]) -> Tower:
    """Attention that shares its blocks with another tower leaves the residual and MLP sites to that tower."""
    owners = {layer.run: tower.name for tower in reversed(list(towers.values())) for layer in tower.layers}
    if not owners.keys() & {layer.run for layer in cross.layers} and cross.name != "cross":
        return cross

    def lean(layer: Layer) -> Layer:
        owner = owners.get(layer.run)
        if owner is None:
            return layer
        shared = [c for c in layer.ports if c.startswith(("resid", "mlp", "neurons"))]
        ports = {c: port for c, port in layer.ports.items() if c not in shared}
        return replace(
            layer, ports=ports, missing={**layer.missing, **dict.fromkeys(shared, f"it belongs to the tower {owner!r}")}
        )

    return replace(cross, layers=tuple(map(lean, cross.layers)), final_norm=None)


def _heads_at_the_border(root: nn.Module, s: Seen, family: Family | None) -> tuple[dict[str, Port], dict[str, str]]:
    """Ports of q, k, v, z for attention outside the interface; what cannot be had there, and why."""
    if s.standpoint != "border" or family is None:
        return {}, {}
    ports = {"z": Port(f"{s.name}.{family.out}", "in", 0)}
    for component in ("q", "k", "v"):
        projection = getattr(family, component)
        if projection is not None and has(root.get_submodule(s.name), projection.module):
            ports[component] = Port(f"{s.name}.{projection.module}", "out")
    missing = {}
    if family.recipe is None:
        reason = (
            f"the attention of {family.name!r} does not go through transformers' interface, and its family gives no"
            " recipe for scores"
        )
        missing = dict.fromkeys(("pattern", "scores", "attention"), reason)
    return ports, missing


def _numbers(root: nn.Module, template: str, members: list[Seen], blocks: Mapping[str, str]) -> dict[str, int]:
    """Layer numbers: the index in the module list, or the order of running where lists are nested (Swin's stages)."""
    names = list(dict.fromkeys(blocks[s.name] for s in members))
    if template.replace(" cross", "").count("*") == 1:
        return {name: int(re.findall(r"\d+(?=\.|$)", name)[-1]) for name in names}
    return {name: n for n, name in enumerate(names)}


def _siblings(root: nn.Module, template: str) -> list[int]:
    before = template.replace(" cross", "").partition(".*")[0] if ".*" in template else ""
    parent = root.get_submodule(before) if before else root
    return [int(name) for name, _ in parent.named_children() if name.isdigit()]


def _tower_name(
    root: nn.Module, template: str, members: list[Seen], *, taken: Mapping[str, Tower], pictured: bool
) -> str:
    name = _kind_of_tower(root, template, members, pictured=pictured)
    return name if name not in taken else f"{name}{sum(t.rstrip('0123456789') == name for t in taken) + 1}"


def _pictured(root: nn.Module, inputs: Mapping[str, Any]) -> bool:
    """Whether a model of no config is given pictures [batch, channel, row, column] and nothing else."""
    given = [value for value in inputs.values() if torch.is_tensor(value)]
    return not hasattr(root, "config") and bool(given) and all(x.ndim == 4 and x.is_floating_point() for x in given)


def _kind_of_tower(root: nn.Module, template: str, members: list[Seen], *, pictured: bool) -> str:
    owner = _owner(root, members[0].name)
    config = type(getattr(owner, "config", None)).__name__.lower()
    if "qformer" in template.lower():
        return "qformer" if not template.endswith(" cross") else "cross"
    if template.endswith(" cross"):
        return "cross"
    if (
        re.search(r"vision|visual", template)
        or "vision" in config
        or getattr(owner, "main_input_name", "") in ("pixel_values", "pixel_values_videos")
        or pictured
    ):
        return "vision"
    if getattr(getattr(root, "config", None), "is_encoder_decoder", False):
        side = re.search(r"(?:^|[._])(encoder|decoder)(?=[._]|$)", template)
        return side[1] if side else "decoder"
    if re.search(r"audio|speech", template) or getattr(owner, "main_input_name", "") in SOUND:
        return "audio"
    return "text"


def _owner(root: nn.Module, name: str) -> nn.Module:
    """The innermost module on the path that has a config and a main input: a pretrained model, not one of its
    layers."""
    owner, node = root, root
    for part in name.split("."):
        node = node.get_submodule(part)
        if hasattr(node, "main_input_name"):
            owner = node
    return owner


def _main(towers: Mapping[str, Tower]) -> str | None:
    if len(towers) == 1:
        return next(iter(towers))
    if "denoiser" in towers:
        return "denoiser"
    stacks = set(towers) - {"cross", "qformer"}
    language = "text" in towers and not towers["text"].bidirectional
    return "text" if "text" in towers and (language or len(stacks) == 1) else None


def _connector(root: nn.Module) -> Port | None:
    for name, _ in root.named_modules():
        if name.endswith(CONNECTORS) and any(name == c or name.endswith("." + c) for c in CONNECTORS):
            return Port(name, "out")
    return None
