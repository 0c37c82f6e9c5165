"""Cut models in the toolkit's own layout, read from disk (`interp/pruning/directory.py` writes them).

A directory of ours holds the config as it was before the cut, the tensors as they are, and in `pruned.json` the class,
the numbers of heads its modules go by, and which parameters share their tensor with another.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from interp.hooks.errors import ModelError
from interp.hooks.sealed import loaded, parsed, understood
from interp.loading.intact import built

FORMAT = 1
NOTE = "pruned.json"
WEIGHTS = "model.safetensors"
HEADS = ("num_heads", "num_attention_heads", "n_heads", "n_head", "heads")
KV_HEADS = ("num_key_value_heads", "num_kv_heads", "n_kv_heads")
WIDTHS = ("all_head_size", "split_size", "inner_dim", "embed_dim")
"""What attention modules call their number of heads, of kv heads, and all heads' width together."""
COUNTS = (*HEADS, *KV_HEADS, *WIDTHS)


def is_own(folder: Path) -> bool:
    """Whether a directory is one of ours."""
    note = folder / NOTE
    return note.exists() and parsed(note).get("layout") == "interp"


def read(folder: Path) -> nn.Module:
    """The cut model in a directory of ours, in eval mode."""
    note = parsed(folder / NOTE)
    if note.get("format") != FORMAT:
        raise ModelError(f"{folder} was written in format {note.get('format')}; this version reads format {FORMAT}.")
    with understood(folder / NOTE), built(folder):
        return _read(folder, note, loaded(folder / WEIGHTS))


def _read(folder: Path, note: Mapping[str, Any], held: dict[str, Tensor]) -> nn.Module:
    module = _skeleton(folder, note["class"])
    for path, numbers in note["attributes"].items():
        for name, value in numbers.items():
            if name not in COUNTS or type(value) is not int:
                raise ModelError(f"{folder}: {NOTE} sets {name} of {path}, which is no number of heads.")
            setattr(module.get_submodule(path), name, value)
    for name, p in list(module.named_parameters()):
        if name in held and held[name].shape != p.shape:
            put(module, name, held[name])
    missing, unexpected = module.load_state_dict(held, strict=False, assign=True)
    if unexpected or set(missing) != set(note["tied"]):
        wrong = [*unexpected, *(set(missing) ^ set(note["tied"]))]
        raise ModelError(f"{folder}: {NOTE} and {WEIGHTS} do not fit each other, as at {wrong[0]}.")
    if hasattr(module, "tie_weights"):
        module.tie_weights()  # type: ignore[operator]
    return module.eval()


def _skeleton(folder: Path, name: str) -> nn.Module:
    """The class with the config it had before the cut."""
    if name == "AttentionOnly":
        from interp.zoo.plain import AttentionOnly, configured

        return AttentionOnly(configured(folder))
    import transformers

    found = getattr(transformers, name, None)
    if not isinstance(found, type) or not issubclass(found, transformers.PreTrainedModel):
        raise ModelError(f"{folder} holds a {name}, which this transformers does not have.")
    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    cls: Any = found
    module: nn.Module = cls._from_config(config)
    return module


def put(root: nn.Module, name: str, value: Tensor) -> None:
    """A parameter of another shape in the place of one, in its module's words."""
    owner, _, leaf = name.rpartition(".")
    module: Any = root.get_submodule(owner)
    old = module._parameters[leaf]
    setattr(module, leaf, nn.Parameter(value.contiguous().clone(), requires_grad=old.requires_grad))
    if leaf == "weight" and isinstance(module, nn.Linear):
        module.out_features, module.in_features = value.shape
    elif leaf == "weight" and type(module).__name__ == "Conv1D":
        module.nx, module.nf = value.shape
    elif leaf == "weight" and isinstance(module, nn.LayerNorm):
        module.normalized_shape = tuple(value.shape)
