"""From heads to the residual and back: the output projection, and the modules between it and the residual."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from interp.hooks.drive.blocks import Blocks
from interp.hooks.errors import ModelError
from interp.hooks.run.writes import multiplier


class Carries:
    """One tower's ways out of its attentions. What is behind a projection is learned from the first pass that is looked
    at: nothing, numbers to multiply by, or a module, which needs its input of the run it is taken in."""

    def __init__(self, blocks: Blocks) -> None:
        self.blocks, self.module = blocks, blocks.module
        self.between: dict[int, Tensor | nn.Module | None] = {}
        self.out: dict[int, Tensor] = {}
        """The attention outputs of the latest pass, where a module is behind them."""
        self._last: Tensor | None = None

    @property
    def wanted(self) -> tuple[str, ...]:
        """What later passes have to show."""
        return ("attn_out",) if any(isinstance(found, nn.Module) for found in self.between.values()) else ()

    def take(self, layer: int, part: str, value: Tensor) -> None:
        """Keep what a pass has behind the projection of a layer."""
        if isinstance(self.between.get(layer), nn.Module):
            self.out[layer] = value.clone()

    def look(self, layer: int, part: str, value: Tensor) -> None:
        """Be shown a layer's attn_out and then its attn_write."""
        if part == "attn_out":
            self._last = value.clone()
            return
        assert self._last is not None
        out, self._last = self._last.reshape(value.shape), None
        self.between[layer] = self._found(layer, out, value)
        if isinstance(self.between[layer], nn.Module):
            self.out[layer] = out

    def _found(self, layer: int, out: Tensor, write: Tensor) -> Tensor | nn.Module | None:
        if torch.equal(out, write):
            return None
        scale = multiplier(out.double(), write.double(), torch.finfo(write.dtype).eps)
        if scale is not None:
            return scale.to(write.dtype)
        port = self.blocks.tower.by_index[layer].ports["attn_write"]
        if port.minus is not None or port.key is not None or port.side != "out":
            raise ModelError(f"layer {layer}: the module between attn_out and attn_write is not known.")
        return self.module.get_submodule(port.module)

    def _projection(self, layer: int) -> nn.Module:
        return self.module.get_submodule(self.blocks.tower.by_index[layer].out or "")

    def carried(self, layer: int, g: Tensor) -> Tensor:
        """`carry^T g` [receiver, row, position, d]: gradients by the attention's output, for those by its write."""
        between = self.between[layer]
        if not isinstance(between, nn.Module):
            return g if between is None else g * between
        with torch.enable_grad():
            x = self.out[layer].reshape(g.shape[1:]).expand(g.shape).detach().requires_grad_()
            (found,) = torch.autograd.grad(between(x), x, g)
        return found

    def by_head(self, layer: int, z: Tensor, dtype: torch.dtype) -> Tensor:
        """`z W_O` [head, row, position, d] of each head of z [row, position, head, d_head], without a bias; a
        projection that is no plain matrix is given its `dtype`."""
        weight = _plain(self._projection(layer))
        if weight is not None:
            return torch.einsum("bphk,dhk->hbpd", z, weight.to(z).unflatten(1, z.shape[2:]))
        alone = torch.zeros(z.shape[2], *z.shape, dtype=dtype, device=z.device)
        for head in range(z.shape[2]):
            alone[head, :, :, head] = z[:, :, head]
        with torch.set_grad_enabled(z.requires_grad):
            made = self.project(layer, alone.flatten(0, 1))
        return made.unflatten(0, alone.shape[:2]).to(z.dtype)

    def project(self, layer: int, z: Tensor) -> Tensor:
        """`z W_O` [..., d] of z [..., head, d_head], the heads summed, without a bias."""
        out, flat = self._projection(layer), z.flatten(-2)
        weight = _plain(out)
        return flat @ weight.T if weight is not None else out(flat) - out(torch.zeros_like(flat))

    def output(self, layer: int, z: Tensor) -> Tensor:
        """attn_out of z [row, position, head, d_head]."""
        made: Tensor = self._projection(layer)(z.flatten(-2))
        return made

    def write(self, layer: int, out: Tensor) -> Tensor:
        """What is added to the residual, for an attention's output."""
        between = self.between[layer]
        if isinstance(between, nn.Module):
            made: Tensor = between(out)
            return made
        return out if between is None else out * between

    def linear(self, layer: int) -> bool:
        """Whether the write is linear in the output."""
        return not isinstance(self.between[layer], nn.Module)


def _plain(out: nn.Module) -> Tensor | None:
    """The projection's matrix [d, head * d_head], where it is known as one."""
    weight = getattr(out, "weight", None)
    if type(weight) is not nn.Parameter or not weight.is_floating_point() or weight.device.type == "meta":
        return None
    if type(out) is nn.Linear:
        return weight.detach()
    return weight.detach().T if type(out).__name__ == "Conv1D" else None
