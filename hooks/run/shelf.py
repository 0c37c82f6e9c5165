"""Tensors kept in a directory instead of in memory: one safetensors file a site, `tape.json` for the rest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from interp.hooks.anatomy.towers import Anatomy, Layer, Nth, Port, Reader, Share, Tower
from interp.hooks.inputs.inputs import Inputs
from interp.hooks.sealed import damaged, digest, inside, loaded, sealed, understood, unsealed
from interp.hooks.sites import LayerPass, Site
from interp.kernels.errors import InterpError

FORMAT = 1


class Shelf(MutableMapping[Site, Tensor]):
    """A mapping from site to tensor that reads a tensor only when it is asked for."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._files: dict[Site, str] = {}
        self._digests: dict[str, str] | None = {}
        self._seen: set[str] = set()
        """Files whose content is known to be what was written: each is looked at once."""

    def __setitem__(self, site: Site, tensor: Tensor) -> None:
        from safetensors.torch import save_file

        (self.folder / "tape.json").unlink(missing_ok=True)  # no tape until it is closed again
        name = self._files.setdefault(site, f"{len(self._files):05d}.safetensors")
        save_file({"value": tensor.detach().cpu().contiguous()}, str(self.folder / name))
        self._seen.add(name)
        if self._digests is not None:
            self._digests[name] = digest(self.folder / name)

    def __getitem__(self, site: Site) -> Tensor:
        name = self._files[site]
        path = inside(self.folder, name)
        held = loaded(path, None if name in self._seen else self._digests)
        self._seen.add(name)
        if "value" not in held:
            raise damaged(path, "it holds no tensor 'value'")
        return held["value"]

    def __delitem__(self, site: Site) -> None:
        (self.folder / self._files.pop(site)).unlink()

    def __iter__(self) -> Iterator[Site]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def sort(self, sites: Sequence[Site]) -> None:
        """List these sites in this order, and no others."""
        self._files = {site: self._files[site] for site in sites}

    def close(self, anatomy: Anatomy, inputs: Inputs | None, meta: Mapping[str, Any]) -> None:
        """Write what makes the files a tape; last, and by rename, so that a killed run leaves no half tape."""
        about = {
            "format": FORMAT,
            "files": [[_plain(asdict(site)), name] for site, name in self._files.items()],
            "anatomy": _plain(asdict(anatomy)),
            "meta": dict(meta),
            "inputs": inputs is not None,
        }
        if inputs is not None:
            inputs.save(self.folder / "inputs")
        scratch = self.folder / "tape.json.part"
        scratch.write_bytes(sealed(about, self._all_digests()))
        scratch.rename(self.folder / "tape.json")

    def _all_digests(self) -> dict[str, str]:
        """Of a tape of version 0.2 that is closed again as well, which had none."""
        known = self._digests or {}
        return {name: known.get(name) or digest(inside(self.folder, name)) for name in self._files.values()}

    @classmethod
    def open(cls, folder: str | Path) -> tuple[Shelf, Anatomy, Inputs | None, dict[str, Any]]:
        """The shelf of a saved tape, with the anatomy, inputs and notes saved with it."""
        path = Path(folder) / "tape.json"
        if not path.exists():
            raise InterpError(f"{folder} holds no tape: expected {path}.")
        about, digests = unsealed(path, FORMAT)
        shelf = cls(folder)
        with understood(path):
            shelf._files = {_site(fields): name for fields, name in about["files"]}
            shelf._digests = digests
            for name in shelf._files.values():
                inside(shelf.folder, name)
            inputs = Inputs.load(Path(folder) / "inputs") if about["inputs"] else None
            return shelf, _anatomy(about["anatomy"]), inputs, dict(about["meta"])


def _plain(value: Any) -> Any:
    """As json writes it, a pass of a layer with the three numbers that it is made of."""
    if isinstance(value, LayerPass):
        return [int(value), value.number, value.nth]
    if isinstance(value, Mapping):
        return {name: _plain(one) for name, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, (list, tuple)) else value


def _index(value: Any) -> Any:
    return LayerPass(*value) if isinstance(value, list) else value


def _site(fields: Mapping[str, Any]) -> Site:
    heads = fields["heads"]
    return Site(**{**fields, "layer": _index(fields["layer"]), "heads": None if heads is None else tuple(heads)})


def _nth(fields: Mapping[str, Any]) -> Nth | None:
    """Tapes of version 0.2 know of no passes."""
    return Nth(**fields["nth"]) if fields.get("nth") is not None else None


def _port(fields: Mapping[str, Any] | None) -> Port | None:
    return None if fields is None else Port(**{**fields, "minus": _port(fields["minus"]), "nth": _nth(fields)})


def _layer(fields: Mapping[str, Any]) -> Layer:
    ports = {name: _port(port) for name, port in fields["ports"].items()}
    readers = tuple(Reader(**one) for one in fields.get("readers", ()))
    index = _index(fields["index"])
    share = Share(**fields["share"]) if fields.get("share") is not None else None
    return Layer(**{**fields, "share": share, "ports": ports, "index": index, "nth": _nth(fields), "readers": readers})


def _tower(fields: Mapping[str, Any]) -> Tower:
    layers = tuple(map(_layer, fields["layers"]))
    return Tower(
        **{**fields, "layers": layers, "final_norm": _port(fields["final_norm"]), "skipped": tuple(fields["skipped"])}
    )


def _anatomy(fields: Mapping[str, Any]) -> Anatomy:
    return Anatomy(
        {name: _tower(tower) for name, tower in fields["towers"].items()},
        fields["main"],
        _port(fields["connector"]),
        fields.get("unheld", {}),
    )
