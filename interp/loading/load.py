"""Read a model by name: from the hub, a directory, a GGUF file, an installed package, or the zoo that ships with the
toolkit.

A name is first brought nearer (a package to the file in it, a GGUF to a directory of plain weights), then read by the
first reader that knows it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from interp.hooks.errors import ModelError
from interp.hooks.sealed import parsed
from interp.hooks.sites import nearest
from interp.loading import cut_models, hub
from interp.loading.converted import FLOAT32, converted
from interp.loading.holdings import GGUF, holds_gguf, model_among
from interp.loading.intact import built
from interp.loading.options import Options
from interp.loading.packages import PREFIX, model_in
from interp.loading.parts import Parts, Single
from interp.model import Model, attach
from interp.preparing.processors import processor_of
from interp.provenance import remember_name

ZOO = "zoo:"
Source = str | Path
Built = tuple[Any, Any]
"""A module and its processor."""


def load(
    name: str | Path,
    *,
    device: str | None = None,
    dtype: Any = "auto",
    attn: str | None = None,
    device_map: Any = None,
    revision: str | None = None,
    offline: bool = False,
    pickle: bool = False,
    remote_code: bool = False,
    partial: bool = False,
    **how: Any,
) -> Model:
    """An attached model in eval mode. `name` is a hub name such as "gpt2", a local directory, a GGUF file,
    "package:NAME" for weights inside an installed package, or "zoo:ioi".

    A GGUF is unpacked to float32 once and read from a cache afterwards (`INTERP_CACHE` says where); the extra
    `interp[gguf]` does it. `attn` chooses the attention implementation, as `attn_implementation` of transformers does;
    `device_map` places a large model; `pickle=True` and `remote_code=True` say that you trust where the checkpoint
    comes from. A checkpoint that lacks weights of its model, or has others over, is refused; `partial=True` takes it
    and says which.
    """
    options = Options(device, dtype, attn, device_map, revision, offline, pickle, remote_code, partial, how)
    source = _nearer(name, options)
    read = next(read for knows, read in READERS if knows(source))
    module, processor = read(source, options)
    if str(source) != str(Path(name).expanduser()) and hasattr(module, "config"):
        module.config._name_or_path = str(name)
    remember_name(module, str(name))
    return attach(module, processor)


def _nearer(name: str | Path, options: Options) -> Source:
    """The name as one of the readers knows it: itself, or a directory that is there."""
    if str(name).startswith((ZOO, PREFIX)) and isinstance(name, str):
        return name if name.startswith(ZOO) else _unpacked(model_in(name), options)
    path = Path(name).expanduser()
    if path.is_dir():
        if holds_gguf(path) and not options.pickle:
            return _unpacked(model_among(sorted(path.iterdir()), str(path)), options)
        return path
    if path.is_file():
        return _unpacked(Single(path), options)
    if path.suffix == GGUF:
        raise ModelError(f"no file {path}: expected a GGUF file.{_beside(path)}")
    if _looks_like_a_path(str(name)):
        raise ModelError(
            f"no directory {path}: expected one in hub layout, with config.json and *.safetensors.{_beside(path)}"
        )
    return str(name)


def _unpacked(found: Path | Single | Parts, options: Options) -> Path:
    if isinstance(found, Path):
        return found
    wanted = options.torch_dtype()
    return converted(
        found, width=FLOAT32 if wanted is None else wanted.itemsize, elsewhere=options.device_map is not None
    )


def _beside(path: Path) -> str:
    """A file in the same place that has nearly its name."""
    return nearest(path.name, (one.name for one in path.parent.iterdir())) if path.parent.is_dir() else ""


def _looks_like_a_path(name: str) -> bool:
    return name.startswith((".", "/", "~")) or name.count("/") > 1


def _from_zoo(source: Source, options: Options) -> Built:
    from interp.zoo.catalog import build

    return _ready(build(str(source)), options, {"revision": options.revision})


def _is_cut(source: Source) -> bool:
    return isinstance(source, Path) and cut_models.is_own(source)


def _cut(source: Source, options: Options) -> Built:
    folder = Path(source)
    return _ready((cut_models.read(folder), _processor(folder, options)), options)


def _is_plain(source: Source) -> bool:
    """Whether it is the toolkit's own attention-only class."""
    said = Path(source) / "config.json"
    if not isinstance(source, Path) or not said.exists():
        return False
    return bool(parsed(said).get("architectures") == ["AttentionOnly"])


def _plain(source: Source, options: Options) -> Built:
    from interp.zoo.plain import read

    folder = Path(source)
    return _ready((read(folder), _processor(folder, options)), options)


def _processor(folder: Path, options: Options) -> Any:
    with built(folder):
        return processor_of(str(folder), options.common(local=True))


READERS: tuple[tuple[Callable[[Source], bool], Callable[[Source, Options], Built]], ...] = (
    (lambda source: str(source).startswith(ZOO), _from_zoo),
    (_is_cut, _cut),
    (_is_plain, _plain),
    (lambda source: True, hub.read),
)
"""Which sources each reader knows; the first that does reads it."""


def _ready(built: Built, options: Options, given: dict[str, Any] | None = None) -> Built:
    """A model that came without `from_pretrained`, with those options that can still be met; others are refused."""
    module, processor = built
    more = {"device_map": options.device_map, **(given or {}), **options.how}
    late = sorted(option for option, value in more.items() if value is not None)
    if options.attn is not None and not hasattr(module, "set_attn_implementation"):
        late = ["attn", *late]
    if late:
        raise ModelError(
            f"{type(module).__name__}: expected dtype, device or attn (of a transformers class), got {', '.join(late)};"
            " `interp zoo export NAME DIR` writes a directory for transformers' own options."
        )
    if options.attn is not None:
        module.set_attn_implementation(options.attn)
    wanted = {"device": options.device, "dtype": options.torch_dtype()}
    return module.to(**{name: value for name, value in wanted.items() if value is not None}), processor
