"""From the end of a tower to the logits: the final norm, then the model's own head.

Where the logits are `head(norm(x))`, possibly scaled or capped, which is checked against the run itself, only the
positions and columns that are read are computed. Otherwise the model's own forward runs with its blocks stepping aside.
For a `Tail` the norm is as said: `norm="final"` is the model's, with each vector's own statistics, `"frozen"` holds the
scale that the run's last residual had at that position (then a sum of vectors gives the sum of their logits), `"none"`
leaves it out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from interp.hooks.anatomy.norms import Frozen, frozen, identity
from interp.hooks.anatomy.spread import whole
from interp.hooks.anatomy.towers import Anatomy, Tower
from interp.hooks.drive.intercept import Intercept
from interp.hooks.drive.questions import Reads
from interp.hooks.drive.recording import Recording
from interp.hooks.errors import ModelError
from interp.hooks.pictures.asked import text_config
from interp.hooks.stand.output import answer_of, logits_of

How = Literal["final", "frozen", "none"]


def last_tower(anatomy: Anatomy, name: str | None) -> Tower:
    """The tower whose last residual makes the logits: the main one, else a decoder's, the text's, or the only one."""
    known = [anatomy.main, "decoder", "text", *(anatomy.towers if len(anatomy.towers) == 1 else ())]
    last = next((one for one in known if one in anatomy.towers), None)
    if last is None:
        raise ModelError(f"none of the towers {', '.join(anatomy.towers)} is known to make the logits.")
    if name is not None and anatomy.tower(name, text=name).name != last:
        raise ModelError(f"the tower {name!r} has no direct way to the logits: they are made from the tower {last!r}.")
    return anatomy.towers[last]


class Readout:
    """Logits of chosen positions [row, position, column] from final hidden states [row, position, d]."""

    def __init__(self, module: nn.Module, base: Recording, kwargs: Mapping[str, Any]) -> None:
        self.module, self.base, self.kwargs = module, base, kwargs
        embeddings: Callable[[], Any] = getattr(module, "get_output_embeddings", lambda: None)
        self.head: Any = embeddings() if answer_of(module) is None else nn.Identity()
        port = base.tower.final_norm
        self.norm = None if port is None else module.get_submodule(port.module)
        self.finish = self._linear()

    @property
    def by_position(self) -> bool:
        """Whether each position's logits depend on that position's hidden state alone, through a known head."""
        return self.finish is not None

    @property
    def vocabulary(self) -> int:
        """How many columns the logits have."""
        return self.base.logits.shape[-1]

    def _linear(self) -> Callable[[Tensor], Tensor] | None:
        """What is done to `head(norm(x))`, if that explains the logits of this run."""
        kept, logits = self.base.kept, self.base.logits
        several = isinstance(self.head, nn.ModuleList)  # a head for each stream of codes, as MusicGen's
        if self.head is None or several or logits.ndim != 3 or (kept is None and logits.shape[1] != self.base.length):
            return None
        last = self.base.length - 1 if kept is None else int(kept[-1])
        reads = logits.shape if isinstance(self.head, nn.Identity) else self.head.weight.shape
        if last >= self.base.length or reads[-1] != self.base.left.shape[-1]:
            return None
        with torch.no_grad():
            plain = self.head(self.final(self.base.left[:, last : last + 1]))
        plainly = isinstance(self.head, nn.Identity)
        for finish in [lambda x: x] if plainly else _finishes(getattr(self.module, "config", None)):
            if torch.allclose(finish(plain), logits[:, -1:].to(plain), atol=1e-4, rtol=1e-4):
                return finish
        return None

    def final(self, x: Tensor) -> Tensor:
        """What the final norm makes of it."""
        return x if self.norm is None else self.norm(x)

    def read(self, x: Tensor, columns: Sequence[int] | None) -> Tensor:
        """Logits for what comes out of the final norm at read positions, on the device of the run's own; needs
        `by_position`."""
        return self._read(x, columns).to(self.base.logits.device)

    def _read(self, x: Tensor, columns: Sequence[int] | None) -> Tensor:
        assert self.finish is not None
        if columns is None or type(self.head) is not nn.Linear:
            made = self.finish(self.head(x))
            return made if columns is None else made[..., list(columns)]
        weight, bias = whole(self.head.weight), whole(self.head.bias)
        index = torch.as_tensor(columns, device=weight.device)
        x = x.to(weight.device)
        return self.finish(nn.functional.linear(x, weight[index], None if bias is None else bias[index]))

    def whole(self, hidden: Tensor, prompts: Tensor) -> Tensor:
        """The model's answer for whole final hidden states [row, position, d], its blocks stepping aside."""
        with self.aside(hidden):
            return self.forward(prompts)

    def forward(self, prompts: Tensor) -> Tensor:
        """The model's unchanged answer to these prompts."""
        logits = logits_of(self.module(**self._rows(prompts)))
        assert logits is not None
        return logits

    def entering(self, block: nn.Module, key: str | int, hidden: Tensor, prompts: Tensor) -> Tensor:
        """What enters a block of a later tower [row, position, d] for these final hidden states."""

        def stop(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            raise _Arrived(kwargs[key] if isinstance(key, str) else args[key])

        try:
            with Intercept(self.module) as put, self.aside(hidden):
                put.before(block, stop)
                self.module(**self._rows(prompts))
        except _Arrived as arrived:
            return arrived.value
        raise ModelError(f"{type(block).__name__} was not reached from the tower {self.base.tower.name!r}.")

    @contextmanager
    def aside(self, hidden: Tensor) -> Iterator[None]:
        """This tower's blocks step aside; the last that was recorded, and those after it, give `hidden`."""
        with Intercept(self.module) as put:
            layers = self.base.tower.layers
            outputs = {block.layer.index: block.output for block in self.base.blocks}
            last = max(outputs, default=layers[-1].index)
            for layer in layers:
                given = hidden if layer.index >= last else None
                key, output = layer.ports["resid_post"].key, outputs.get(layer.index)
                put.instead(self.module.get_submodule(layer.block), partial(_aside, key, given, output), nth=layer.nth)
            yield

    def _rows(self, prompts: Tensor) -> dict[str, Any]:
        mine = {n: torch.is_tensor(v) and v.shape[0] == self.base.rows and (n, v.ndim) != ("position_ids", 3)
                for n, v in self.kwargs.items()}  # fmt: skip
        return {n: v[prompts] if mine[n] else v for n, v in self.kwargs.items()}


class Tail(Readout):
    """The final norm and the head of one run, for other residuals [row, position, d] in the place of its last."""

    def __init__(
        self, module: nn.Module, tower: Tower, kwargs: Mapping[str, Any], *, left: Tensor, logits: Tensor
    ) -> None:
        _refuse_before(module, tower)
        super().__init__(module, Recording(tower, (), {}, left, logits, None, *left.shape[:2]), kwargs)
        self.tower, self.left = tower, left

    @cached_property
    def frozen(self) -> Frozen:
        """The final norm as the linear map that it was in the run."""
        return identity(self.left) if self.norm is None else frozen(self.norm, self.left, name="the final norm")

    def normed(self, hidden: Tensor, how: How, prompts: Tensor | None = None) -> Tensor:
        """Residuals after the final norm; `prompts` says of which rows of the run they are versions."""
        if how == "none" or self.norm is None:
            return hidden
        if how == "final":
            return self.final(hidden)
        return (self.frozen if prompts is None else self.frozen.at(prompts))(hidden)

    def logits(self, normed: Tensor, reads: Reads, prompts: Tensor | None = None) -> Tensor:
        """The logits that are read [row, read, column], for what comes out of the final norm."""
        prompts = torch.arange(len(normed)) if prompts is None else prompts
        at = reads.positions[prompts]
        rows = torch.arange(len(at))[:, None]
        if self.by_position:
            return self.read(normed[rows, at], reads.columns)
        whole = self._whole(normed, prompts)
        found = whole[:, None] if whole.ndim == 2 else whole[rows, at]
        return found if reads.columns is None else found[..., list(reads.columns)]

    def _whole(self, normed: Tensor, prompts: Tensor) -> Tensor:
        port = self.tower.final_norm
        if port is None:
            return self.whole(normed, prompts)
        with Intercept(self.module) as put:
            put.port(port, lambda _: normed)
            if self.tower.layers[-1].ports["resid_post"].key is None:
                return self.whole(self.left[prompts], prompts)
            return self.forward(prompts)  # blocks that return more than the residual cannot step aside


def _refuse_before(module: nn.Module, tower: Tower) -> None:
    """Raise where a metric reads a place that the last residual does not come before."""
    answer = answer_of(module)
    if answer is None or answer.site is None or answer.site.component == "final_norm":
        return
    if tower.final_norm is None and answer.site.layer == tower.layers[-1].index:
        return  # it is the last residual itself
    raise ModelError(
        f"the metric reads {answer.name!r}, and what is written straight to the end of the tower {tower.name!r} does"
        " not pass there: read 'final_norm', or use interp.patch."
    )


def unembedding(tail: Tail) -> Tensor:
    """The matrix that makes logits of what comes out of the final norm [d, vocabulary], biases and soft caps left out:
    off the head's weight where the model says which module that is, else by asking it for every unit vector."""
    head = tail.head
    if tail.by_position and type(head) is nn.Linear:
        return cast(Tensor, whole(head.weight)).detach().T
    return _asked(tail)


def _asked(tail: Tail) -> Tensor:
    left, logits = tail.left, tail.base.logits
    width = left.shape[-1]
    if logits.ndim not in (2, 3) or (logits.ndim == 3 and logits.shape[1] != left.shape[1]):
        raise ModelError(f"logits {list(logits.shape)} are not made position by position, so no matrix makes them.")
    classes = logits.ndim == 2
    each = len(left) if classes else len(left) * left.shape[1]
    units = torch.eye(width, dtype=left.dtype, device=left.device)
    nothing = _logits(tail, torch.zeros_like(left))
    parts = []
    for start in range(0, width, each):
        some = units[start : start + each]
        whole = torch.zeros_like(left)
        if classes:
            whole[: len(some)] = some[:, None]
        else:
            whole.view(-1, width)[: len(some)] = some
        made = _logits(tail, whole) - nothing
        parts.append(made.reshape(-1, made.shape[-1])[: len(some)])
    found = torch.cat(parts)
    _check_linear(tail, found, nothing)
    return found


def _check_linear(tail: Tail, found: Tensor, nothing: Tensor) -> None:
    """A head with more than a matrix in it (a masked language model's) is refused."""
    random = torch.randn(found.shape[0], generator=torch.Generator().manual_seed(0)).to(tail.left)
    made = _logits(tail, random.expand(tail.left.shape).clone()) - nothing
    gap, size = float((made[0, 0] - random.to(found.device) @ found).abs().max()), float(made[0, 0].abs().max())
    if not gap <= 1e-3 * max(size, 1e-12):
        raise ModelError(
            f"the head of {type(tail.module).__name__} is more than one matrix (off by {gap:.3g} of {size:.3g}), so"
            " what a head writes cannot be taken straight to the logits."
        )


def _logits(tail: Tail, normed: Tensor) -> Tensor:
    rows = len(normed)
    count = 1 if tail.base.logits.ndim == 2 else normed.shape[1]
    reads = Reads(torch.arange(count).expand(rows, -1), None)
    with torch.no_grad():
        return tail.logits(normed, reads)


class _Arrived(Exception):
    """Carries a tensor out of a pass that need not go on."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = value


def _aside(key: Any, result: Tensor | None, output: Any, /, *args: Any, **kwargs: Any) -> Any:
    """What a block returns that gives a tensor, or what it was given; with what it gave before."""
    x = result if result is not None else (args[0] if args else kwargs["hidden_states"])
    if key is None:
        return x
    return (x,) if not isinstance(output, tuple) else (*output[:key], x, *output[key + 1 :])


def _finishes(config: Any) -> list[Callable[[Tensor], Tensor]]:
    text = text_config(config)
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
