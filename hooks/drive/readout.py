"""From the last block's output to the logits that a metric reads.

Where the logits are `head(norm(x))`, possibly scaled or capped, which is checked against the run itself, only the
positions and columns read are computed. Otherwise the model's own forward runs with its blocks stepping aside.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from interp.hooks.anatomy.towers import Tower
from interp.hooks.drive.recording import Recording
from interp.hooks.errors import ModelError
from interp.hooks.stand.output import logits_of


class Readout:
    """Logits of chosen positions [row, position, column] from final hidden states [row, position, d]."""

    def __init__(self, module: nn.Module, tower: Tower, base: Recording, kwargs: Mapping[str, Any]) -> None:
        self.module, self.tower, self.base, self.kwargs = module, tower, base, kwargs
        logits = logits_of(base.output)
        if logits is None:
            raise ModelError(f"{type(module).__name__} has no logits to measure: load it with a head.")
        self.logits = logits
        embeddings: Callable[[], Any] = getattr(module, "get_output_embeddings", lambda: None)
        self.head: Any = embeddings()
        self.norm = module.get_submodule(tower.final_norm.module) if tower.final_norm is not None else None
        self.finish = self._linear()

    @property
    def by_position(self) -> bool:
        """Whether each position's logits depend on that position's hidden state alone, through a known head."""
        return self.finish is not None

    @property
    def vocabulary(self) -> int:
        """How many columns the logits have."""
        return self.logits.shape[-1]

    def _linear(self) -> Callable[[Tensor], Tensor] | None:
        """What is done to `head(norm(x))`, if that explains the logits of this run."""
        kept = self.base.kept
        if self.head is None or self.logits.ndim != 3 or (kept is None and self.logits.shape[1] != self.base.length):
            return None
        last = self.base.length - 1 if kept is None else int(kept[-1])
        if last >= self.base.length or self.head.weight.shape[-1] != self.base.left.shape[-1]:
            return None
        with torch.no_grad():
            plain = self.head(self._normed(self.base.left[:, last : last + 1]))
        for finish in _finishes(getattr(self.module, "config", None)):
            if torch.allclose(finish(plain), self.logits[:, -1:].to(plain), atol=1e-4, rtol=1e-4):
                return finish
        return None

    def _normed(self, x: Tensor) -> Tensor:
        return x if self.norm is None else self.norm(x)

    def read(self, hidden: Tensor, columns: Sequence[int] | None) -> Tensor:
        """Logits for hidden states of read positions, on the device of the run's own; needs `by_position`."""
        return self._read(hidden, columns).to(self.logits.device)

    def _read(self, hidden: Tensor, columns: Sequence[int] | None) -> Tensor:
        assert self.finish is not None
        x = self._normed(hidden)
        if columns is None or type(self.head) is not nn.Linear:
            made = self.finish(self.head(x))
            return made if columns is None else made[..., list(columns)]
        weight, bias = self.head.weight, self.head.bias
        index = torch.as_tensor(columns, device=weight.device)
        x = x.to(weight.device)
        return self.finish(nn.functional.linear(x, weight[index], None if bias is None else bias[index]))

    def whole(self, hidden: Tensor, prompts: Tensor) -> Tensor:
        """The model's answer for whole final hidden states [row, position, d], its blocks stepping aside."""
        with self.aside(hidden):
            logits = logits_of(self.module(**self._rows(prompts)))
        assert logits is not None
        return logits

    def entering(self, block: nn.Module, key: Any, hidden: Tensor, prompts: Tensor) -> Tensor:
        """What enters a block of a later tower [row, position, d] for these final hidden states."""

        def stop(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            raise _Arrived(kwargs[key] if isinstance(key, str) else args[key or 0])

        handle = block.register_forward_pre_hook(stop, with_kwargs=True)
        try:
            with self.aside(hidden):
                self.module(**self._rows(prompts))
        except _Arrived as arrived:
            return arrived.value
        finally:
            handle.remove()
        raise ModelError(f"{type(block).__name__} was not reached from the tower {self.tower.name!r}.")

    @contextmanager
    def aside(self, hidden: Tensor) -> Iterator[None]:
        """This tower's blocks step aside; the last that was recorded, and those after it, give `hidden`."""
        with ExitStack() as undo:
            outputs = {block.layer.index: block.output for block in self.base.blocks}
            last = max(outputs, default=self.tower.layers[-1].index)
            for layer in self.tower.layers:
                given = hidden if layer.index >= last else None
                own, key = self.module.get_submodule(layer.block), layer.ports["resid_post"].key
                undo.callback(_step_aside(own, key, given, outputs.get(layer.index)))
            yield

    def _rows(self, prompts: Tensor) -> dict[str, Any]:
        mine = {n: torch.is_tensor(v) and v.shape[0] == self.base.prompts and (n, v.ndim) != ("position_ids", 3)
                for n, v in self.kwargs.items()}  # fmt: skip
        return {n: v[prompts] if mine[n] else v for n, v in self.kwargs.items()}


class _Arrived(Exception):
    """Carries a tensor out of a pass that need not go on."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = value


def _step_aside(block: nn.Module, key: Any, result: Tensor | None, output: Any) -> Callable[[], None]:
    """Let a block return a given tensor, or what it was given, without running; beside it what it gave before."""
    had = "forward" in vars(block)
    own = vars(block).get("forward")

    def forward(*args: Any, **kwargs: Any) -> Any:
        x = result if result is not None else (args[0] if args else kwargs["hidden_states"])
        if key is None:
            return x
        return (x,) if not isinstance(output, tuple) else (*output[:key], x, *output[key + 1 :])

    def undo() -> None:
        if had:
            block.forward = own  # type: ignore[assignment]
        else:
            del block.forward

    block.forward = forward
    return undo


def _finishes(config: Any) -> list[Callable[[Tensor], Tensor]]:
    text = getattr(config, "get_text_config", lambda: config)()
    cap, scale, divide = (getattr(text, n, None) for n in ("final_logit_softcapping", "logit_scale", "logits_scaling"))
    found: list[Callable[[Tensor], Tensor]] = [lambda x: x]
    if cap:
        found.append(lambda x: cap * torch.tanh(x / cap))
    if scale:
        found.append(lambda x: x * scale)
    if divide:
        found.append(lambda x: x / divide)
    if getattr(text, "scale_decoder_outputs", False):
        found.append(lambda x: x * text.d_model**-0.5)
    return found
