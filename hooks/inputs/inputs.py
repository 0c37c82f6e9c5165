"""What a model is called with, frozen: tensors, which positions are real, what each token is, where text is.

Idea: everything later asks one object which positions count (`valid`), what they are (`roles`) and where a word is
(`find`), so that no method does its own arithmetic on padding. Positions are columns of the main tower (the decoder of
an encoder-decoder); `tower("encoder")` or `tower("vision")` is the same object for another stack of layers.
Cost: no forward pass. Limits: the tensors are shared with the caller, not copied; 4-d attention masks are refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias

import torch
from jaxtyping import Bool
from torch import Tensor

from interp.hooks.errors import InputsError, UnknownPositions
from interp.hooks.inputs import files, table
from interp.hooks.inputs.arguments import checked, flat, main_ids, main_tower, nested, other_towers, unknown_call
from interp.hooks.inputs.positions import Span, named, resolve
from interp.hooks.inputs.roles import Roles, plain, roles
from interp.hooks.inputs.token_text import Decoder, Offsets, covering, locate, not_found, read, shown
from interp.hooks.pictures.grids import Patches

Positions: TypeAlias = "str | Span | int | Sequence[Any] | slice | range | Tensor"
ALIASES = {
    "text": ("text", "decoder", "encoder", "cross"),
    "decoder": ("decoder", "text", "cross"),
    "vision": ("vision", "encoder"),
    "encoder": ("encoder", "audio"),
    "audio": ("audio", "encoder"),
    "denoiser": ("denoiser", "cross"),
}


@dataclass(frozen=True, eq=False, repr=False)
class Inputs:
    """The arguments of one batch and what is known about them; made by `prepare` or `Inputs.of`.

    `texts[row][start:end]` with `(start, end) = offsets[row][position]` is the text of a token; `continuation[row]` is
    the column where a row's answer starts; `towers` holds the other towers, or why their positions are not known.
    """

    kwargs: Mapping[str, Any]
    """The arguments of the model call, by name."""
    valid: Bool[Tensor, "batch position"]
    """Which positions are real tokens and not padding."""
    roles: Roles
    """What each position is: text, image, padding and so on."""
    tokens: tuple[tuple[str, ...], ...] | None = None
    """The tokens as text, row by row."""
    texts: tuple[str, ...] | None = None
    """The text of each row."""
    offsets: tuple[Offsets, ...] | None = None
    """The characters of each token, row by row."""
    continuation: tuple[int, ...] | None = None
    """The column at which the answer of each row starts."""
    main: str = "text"
    """The tower that these positions belong to."""
    towers: Mapping[str, Any] = field(default_factory=dict)
    """By name, the inputs of the other towers, or why their positions are not known."""
    unnamed: str | None = None
    """The tower that a site without a tower's name means, where it is not the main one (a transducer's encoder)."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "kwargs", MappingProxyType(dict(self.kwargs)))
        object.__setattr__(self, "towers", MappingProxyType(dict(self.towers)))

    def __reduce__(self) -> tuple[Any, ...]:
        rest = (self.valid, self.roles, self.tokens, self.texts, self.offsets, self.continuation, self.main)
        return Inputs, (dict(self.kwargs), *rest, dict(self.towers), self.unnamed)

    @classmethod
    def of(
        cls, kwargs: Mapping[str, Any], *, config: Any = None, tokenizer: Any = None, extractor: Any = None
    ) -> Inputs:
        """Wrap the arguments of a call as they are; ids are never retokenised."""
        call = checked(kwargs, config)
        known = "pixel_values" in call or config is None or isinstance(config, Patches)
        main = main_tower(call)
        if main == "vision" and not known and "pixel_values_videos" not in call:
            raise unknown_call(call)
        towers = {name: _tower(call, name, config, tokenizer, extractor) for name in other_towers(call)}
        if getattr(config, "model_type", None) == "mllama" and "vision" in towers:
            towers["vision2"] = towers["vision"]  # its global layers go on over the same tiles
        return _describe(call, main, config, tokenizer, extractor, towers)

    @classmethod
    def of_length(cls, kwargs: Mapping[str, Any], length: int, *, tower: str) -> Inputs:
        """The arguments of a call of which only the number of positions is known: pictures without a grid, sound."""
        call = checked(kwargs)
        rows = next(len(x) for x in call.values() if isinstance(x, Tensor) and x.ndim)
        valid = torch.ones(rows, length, dtype=torch.bool)
        kind = {"vision": "image", "audio": "audio"}.get(tower.rstrip("0123456789"), "text")
        return cls(call, valid, plain(valid, kind), main=tower if tower in ALIASES else "text")

    def called(self, kwargs: Mapping[str, Any], *, config: Any = None) -> Inputs:
        """The inputs of a call with rows of these ones."""
        try:
            return replace(Inputs.of(kwargs, config=config), unnamed=self.unnamed)
        except UnknownPositions:
            return Inputs.of_length(kwargs, self.length, tower=self.main)

    @property
    def ids(self) -> Tensor | None:
        """The main tower's ids, where it reads ids."""
        return main_ids(self.kwargs, self.main)

    @property
    def batch(self) -> int:
        """Rows."""
        return self.valid.shape[0]

    @property
    def length(self) -> int:
        """Columns, padding included."""
        return self.valid.shape[1]

    def __len__(self) -> int:
        return self.batch

    def tower(self, name: str) -> Inputs:
        """The positions of another tower; the main tower's own names give this object."""
        if self.main == "denoiser" and name not in self.towers:
            name = name.rstrip("0123456789")  # stacks of one name attend over the same tokens
        found = self.towers.get(name, self if name in ALIASES[self.main] else None)
        if isinstance(found, Inputs):
            return found
        known = ", ".join(dict.fromkeys((self.main, *self.towers)))
        raise InputsError(found or f"no tower {name!r} in these inputs; they have {known}")

    def valid_of(self, tower: str) -> Bool[Tensor, "batch position"]:
        """Which positions of a tower are real."""
        return self.tower(tower).valid

    def whole(self, tower: str) -> Inputs:
        """The same inputs, of which every position of a tower counts, padding too: for models that see it, as Whisper's
        decoder sees frames without sound. Patches then reach them, and `mask("pad")` are they alone."""
        if tower in ALIASES[self.main] and tower not in self.towers:
            return replace(self, valid=torch.ones_like(self.valid))
        own = self.tower(tower)
        every = replace(own, valid=torch.ones_like(own.valid))
        return replace(self, towers={**self.towers, tower: every})

    def mask(self, spec: Positions) -> Bool[Tensor, "batch position"]:
        """The real positions that a specification means.

        A role (`"image"`, `"text"`, `"bos"`, `"image:0"`, `"newline"`, `"cls"`), `"all" "first" "last"`, `"prompt"
        "continuation" "last_prompt"`, a text that occurs once in every row, a `Span`, a column, columns, columns per
        row, a slice, a range, or a mask.
        Negative numbers count from each row's last real token; a number that is padding in some row is an error.
        """
        if isinstance(spec, str) and self.texts is not None and not named(spec, self.roles):
            spec = self._only(spec)
        return resolve(spec, self.valid, self.roles, self.continuation)

    def _only(self, text: str) -> str | Span:
        """The tokens of a text that occurs once in every row; the text as it is where it is in no row."""
        counts = [one.count(text) for one in self.texts or ()]
        if not any(counts):
            return text
        if set(counts) != {1}:
            row = next(i for i, count in enumerate(counts) if count != 1)
            raise InputsError(
                f"the text {text!r} occurs {counts[row]} times in row {row}, so positions={text!r} does not say which"
                f" tokens are meant: x = m.prepare(...), and positions=x.find({text!r}, occurrence=n)"
            )
        return self.find(text)

    def find(self, text: str, occurrence: int = 1, *, row: int | None = None) -> Span:
        """The tokens that hold the n-th occurrence of a text, in every row or in one; -1 is the last occurrence."""
        if self.texts is None or self.offsets is None:
            raise InputsError("the text of these inputs is not known: make them with a tokenizer")
        if not text or occurrence == 0:
            raise InputsError("find needs a text of at least one character and an occurrence from 1 (or from -1)")
        if row is not None and not -self.batch <= row < self.batch:
            raise InputsError(f"no row {row} in a batch of {self.batch}")
        wanted = range(self.batch) if row is None else [row % self.batch]
        return Span(tuple(self._find(i, text, occurrence) if i in wanted else None for i in range(self.batch)), text)

    def _find(self, row: int, text: str, occurrence: int) -> tuple[int, int]:
        assert self.texts is not None
        assert self.offsets is not None
        where = locate(self.texts[row], text, occurrence)
        span = covering(self.offsets[row], *where) if where else None
        if span is None:
            raise not_found(row, self.texts[row], text, occurrence)
        return span

    def digest(self) -> str:
        """A sha256 of the data, the same on every machine."""
        total = hashlib.sha256()
        for name, value in sorted({**flat(self.kwargs), "valid": self.valid}.items()):
            if not isinstance(value, Tensor):
                total.update(f"{name} {value!r}\n".encode())
                continue
            array = value.detach().cpu().contiguous()
            total.update(f"{name} {array.dtype} {tuple(array.shape)}\n".encode())
            total.update(array.reshape(-1).view(torch.uint8).numpy().tobytes())
        return total.hexdigest()

    def to(self, device: torch.device | str) -> Inputs:
        """The same inputs on another device."""
        kwargs = flat(self.kwargs)
        moved = nested(
            {name: value.to(device) if isinstance(value, Tensor) else value for name, value in kwargs.items()}
        )
        towers = {name: tower.to(device) if isinstance(tower, Inputs) else tower for name, tower in self.towers.items()}
        rest = (self.tokens, self.texts, self.offsets, self.continuation, self.main)
        return Inputs(moved, self.valid.to(device), self.roles.to(device), *rest, towers, self.unnamed)

    def save(self, folder: str | Path) -> None:
        """Write everything but towers that are not known to a folder: `inputs.safetensors` and `inputs.json`."""
        files.save(self, Path(folder))

    @staticmethod
    def load(folder: str | Path) -> Inputs:
        """Read what `save` wrote."""
        return files.load(Inputs, Path(folder))

    def show(self) -> None:
        """Print every position: column, id, token, role; long stretches of patches or padding folded."""
        print(table.text(self))

    def __repr__(self) -> str:
        return f"Inputs({self.batch} x {self.length} positions, {int(self.valid.sum())} real, {self.roles!r})"

    def _repr_html_(self) -> str:
        return table.html(self)


def _describe(
    call: Mapping[str, Any],
    tower: str,
    config: Any,
    tokenizer: Any,
    extractor: Any,
    towers: Mapping[str, Any] = MappingProxyType({}),
) -> Inputs:
    labels = roles(config, call, tokenizer=tokenizer, tower=tower, extractor=extractor)
    valid, ids = ~labels.where("pad"), main_ids(call, tower)
    if ids is None or tokenizer is None:
        return Inputs(call, valid, labels, main=tower, towers=towers)
    decoder = Decoder(tokenizer)
    rows = [(row.tolist(), real.tolist()) for row, real in zip(ids, valid, strict=True)]
    texts, offsets = zip(*(read(decoder, row, real) for row, real in rows), strict=True)
    return Inputs(
        call, valid, labels, tuple(shown(decoder, row) for row, _ in rows), texts, offsets, None, tower, towers
    )


def _tower(call: Mapping[str, Any], name: str, config: Any, tokenizer: Any, extractor: Any) -> Inputs | str:
    """Another tower's inputs, or why its positions are not known."""
    try:
        return _describe(call, name, config, tokenizer if name in ("encoder", "text") else None, extractor)
    except InputsError as reason:
        return str(reason)


__all__ = ["Inputs", "Positions", "Roles", "Span"]
