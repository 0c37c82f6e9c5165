"""What `interp.load` is asked for besides the name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from interp.hooks.errors import ModelError


@dataclass(frozen=True)
class Options:
    """The options of `load`, under its names."""

    device: str | None = None
    dtype: Any = "auto"
    attn: str | None = None
    device_map: Any = None
    revision: str | None = None
    offline: bool = False
    pickle: bool = False
    remote_code: bool = False
    partial: bool = False
    how: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _there(self.device)
        if "gguf_file" in self.how:
            raise ModelError("gguf_file= is not taken: give the path of the GGUF file itself as the name.")

    def common(self, *, local: bool) -> dict[str, Any]:
        """What config, weights and processor of a checkpoint are all read with."""
        return {
            "revision": self.revision,
            "local_files_only": local or self.offline,
            "trust_remote_code": self.remote_code,
        }

    def torch_dtype(self) -> Any:
        """As transformers reads it, a torch dtype or its name; None where it is the checkpoint's own."""
        import torch

        if self.dtype is None or self.dtype == "auto":
            return None
        found = getattr(torch, self.dtype, None) if isinstance(self.dtype, str) else self.dtype
        if not isinstance(found, torch.dtype):
            raise ModelError(f"expected dtype as a torch dtype, its name or 'auto', got {self.dtype!r}.")
        return found


def _there(device: str | None) -> None:
    """Refuse a device that there is none of before anything is read."""
    import torch

    if device is None:
        return
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as why:
        first = str(why).strip().splitlines()[0]
        raise ModelError(f"no device {device!r} here: {first} Leave it out, or give cpu, cuda or cuda:1.") from why
