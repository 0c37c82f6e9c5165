"""What attends in a model and is not held, with the reason of each; and why nothing is held where nothing is.

Nothing that attended may be missing without a word. Said of a module is the first that is true: it is a layer of a
tower, or inside or around one; it computed a softmax of scores; its class is named after attention, and it ran (linear,
deformable or other attention without a softmax) or did not run on these inputs; it is in the place of a layer of a
tower, ran, and mixes positions in another way (state spaces, recurrence, convolution). Limits: attention without a
softmax in a module that is not named after it, outside the list of a tower's layers, is not noticed.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping

from torch import nn

from interp.hooks.errors import ModelError
from interp.hooks.unseen.guess import called_attention
from interp.hooks.unseen.softmaxes import Softmaxes

OWN_SOFTMAX = "it computes its own softmax, which interp does not see"
NO_SOFTMAX = "it ran, and no softmax of scores was seen in it: it attends in another way"
DEFORMABLE = "it ran, and attends to places that it samples (deformable attention): it has no row of keys"
CONVOLUTIONS = "its projections are convolutions, which read [batch, d, position] where a site is [batch, position, d]"
FUNCTION = "it gives its weights to torch's multi_head_attention_forward, so its projections do not run as modules"
IDLE = "it did not run on the inputs that the model was traced with"
ELSE = re.compile("norm|mlp|ffn|feedforward|feed_forward|moe|expert|dropout", re.IGNORECASE)
"""Parts of a layer that mix no positions, by name or class."""


def unheld(root: nn.Module, softmaxes: Softmaxes, held: Collection[str], blocks: Collection[str]) -> dict[str, str]:
    """Modules that attend, or are in the place of attention, and are no layer of a tower; with the reason."""
    found = {name: _why(root.get_submodule(name), OWN_SOFTMAX) for name in softmaxes.names if not _in(name, held)}
    named = [n for n in called_attention(root) if not _in(n, held) and not _around(n, [*held, *found, *blocks])]
    for name in named:
        if not _in(name, found) and not _around(name, named):
            found[name] = _why(root.get_submodule(name), NO_SOFTMAX) if name in softmaxes.ran else IDLE
    for name in _siblings(root, blocks):
        mixers = _mixers(root.get_submodule(name))
        if name in softmaxes.ran and mixers and not _in(name, found) and not _around(name, found):
            found[name] = f"it has no attention heads: {', '.join(mixers)} mixes its positions"
    return found


def nothing(root: nn.Module, softmaxes: Softmaxes) -> ModelError:
    """Why nothing is held: what attends and where its heads could not be found, or that nothing does."""
    called = type(root).__name__
    if softmaxes.names:
        name = next(iter(softmaxes.names))
        why = FUNCTION if name in softmaxes.whole else _hidden(root, name)
        return ModelError(f"no attention call was seen in {called}: {name!r} computes its own softmax, and {why}.")
    others = [name for name in called_attention(root) if name in softmaxes.ran]
    also = f"; {others[0]!r} ({type(root.get_submodule(others[0])).__name__}) ran without either" if others else ""
    return ModelError(f"{called} has no attention heads: no attention call was seen, and no softmax of scores{also}.")


def _hidden(root: nn.Module, name: str) -> str:
    """Why its heads could not be found."""
    while name and not any(True for _ in root.get_submodule(name).parameters()):
        name = name.rpartition(".")[0]
    place = root.get_submodule(name)
    if not any(isinstance(child, nn.Linear) for child in place.modules()):
        if any(p.ndim >= 3 for p in place.parameters(recurse=False)):
            return "its projections are parameters and no modules, so z is not the input or output of a module"
        if any(isinstance(child, nn.modules.conv._ConvNd) for child in place.modules()):
            return CONVOLUTIONS
    return (
        "no matrix after it reads each of its heads separately: they are mixed or joined with something else before."
        " Pass family=interp.families.Family(...) if you know where they are"
    )


def _why(module: nn.Module, otherwise: str) -> str:
    return DEFORMABLE if "deformable" in type(module).__name__.lower() else otherwise


def _in(name: str, others: Iterable[str]) -> bool:
    """Whether a module is one of these, or inside one."""
    return any(name == other or name.startswith(f"{other}.") for other in others)


def _around(name: str, others: Iterable[str]) -> bool:
    """Whether one of these is inside a module."""
    return any(other.startswith(f"{name}.") for other in others) or name == ""


def _siblings(root: nn.Module, blocks: Collection[str]) -> Iterator[str]:
    """The elements of the lists that a tower's layers are in, which are none of them."""
    for parent in dict.fromkeys(block.rpartition(".")[0] for block in blocks):
        module = root.get_submodule(parent)
        if isinstance(module, nn.ModuleList):
            names = [f"{parent}.{number}" if parent else number for number, _ in module.named_children()]
            yield from (name for name in names if name not in blocks and not _around(name, blocks))


def _mixers(layer: nn.Module) -> list[str]:
    """The classes of a layer's parts that are neither norms nor MLPs."""
    parts = [
        child
        for name, child in layer.named_children()
        if any(True for _ in child.parameters()) and not ELSE.search(f"{name} {type(child).__name__}")
    ]
    return list(dict.fromkeys(type(part).__name__ for part in parts))


def refuse_slots(root: nn.Module, attending: Mapping[str, object]) -> None:
    """Raise where the heads of a call are the slots of a router, so that a head is another one for every token."""
    for name in attending:
        experts = [part for part, child in root.get_submodule(name).named_modules() if _of_experts(part, child)]
        if experts:
            raise ModelError(
                f"{name} has router slots, not heads: {experts[0]!r} chooses for each token which expert's queries a"
                " slot holds, so head 3 of one token is not head 3 of the next, and no site could mean it."
            )


def _of_experts(name: str, module: nn.Module) -> bool:
    return name.rpartition(".")[2] == "experts" and any(p.ndim == 3 for p in module.parameters())
