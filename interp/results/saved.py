"""Results with their own directory: tensors, a table and JSON, written and read back by one base.

A result is a frozen dataclass. Fields that hold a tensor go to STEM.safetensors under their own names, the others to
the JSON; the table of `to_frame()` is saved too, for readers of parquet. A class that keeps things otherwise says so in
`tensors`, `facts` and `restored`; files of version 0.1 have the same layout.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

from torch import Tensor

from interp.hooks.sealed import understood
from interp.results.figures.drawn import Drawn
from interp.saving import read, write

FORMAT = 1
S = TypeVar("S", bound="Saved")


class Saved(Drawn):
    """A result that saves itself; `interp.open` reads what it wrote."""

    STEM: ClassVar[str]
    """The name of its files."""
    ABOUT: ClassVar[str] = ""
    """The JSON's name, where it is another one."""
    TABLE: ClassVar[Literal["parquet", "csv"] | None] = "parquet"
    TENSORS: ClassVar[bool] = True
    """Whether it holds any."""

    def tensors(self) -> dict[str, Tensor]:
        """What goes into the safetensors file, by name."""
        return {name: value for name, value in self._fields().items() if isinstance(value, Tensor)}

    def facts(self) -> dict[str, Any]:
        """What goes into the JSON."""
        plain = {name: value for name, value in self._fields().items() if not _of_tensors(value)}
        return {name: dict(value) if isinstance(value, Mapping) else value for name, value in plain.items()}

    def _fields(self) -> dict[str, Any]:
        return {one.name: getattr(self, one.name) for one in fields(self)}  # type: ignore[arg-type]

    @classmethod
    def restored(cls: type[S], facts: dict[str, Any], tensors: dict[str, Tensor]) -> S:
        """The result from what `facts` and `tensors` gave, lists as they come from JSON."""
        names = {one.name for one in fields(cls)}  # type: ignore[arg-type]
        said = {name: value if name == "meta" else tupled(value) for name, value in facts.items() if name in names}
        return cls(**{**said, **tensors})

    def to_frame(self) -> Any:
        """The result as a table (pandas)."""
        raise NotImplementedError

    @classmethod
    def _files(cls) -> tuple[str, str]:
        return f"{cls.STEM}.safetensors", cls.ABOUT or f"{cls.STEM}.json"

    def save(self, directory: str | Path) -> Path:
        """Write its tensors, its table and what is known about them to a directory; read back with `interp.open`."""
        table = None if self.TABLE is None else self.to_frame()
        about = {"format": FORMAT, **self.facts()}
        return write(directory, self.tensors(), about, names=self._files(), table=table, kind=self.TABLE)

    @classmethod
    def load(cls: type[S], directory: str | Path) -> S:
        """Read what `save` wrote."""
        facts, tensors = read(directory, cls._files(), FORMAT, tensors=cls.TENSORS)
        with understood(Path(directory) / cls._files()[1]):
            return cls.restored(facts, tensors)


def _of_tensors(value: Any) -> bool:
    if isinstance(value, Mapping | tuple):
        return any(map(_of_tensors, value.values() if isinstance(value, Mapping) else value))
    return isinstance(value, Tensor)


def tupled(value: Any) -> Any:
    """Lists as tuples, those inside as well."""
    return tuple(map(tupled, value)) if isinstance(value, list) else value
