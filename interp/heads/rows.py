"""One table for what is known about heads, whoever found it: a row per head, method and direction.

Reports, pruning and the explorer read the same columns, and so can anything that opens a CSV or a parquet file.
`COLUMNS` is the schema, and `SCHEMA` its version, in every row: a column may be added, none changes its meaning.
Numbers are kept to six digits, since the seventh depends on the batch a prompt was in. Cost: none.
Limits: one place per row, so results with a position axis, pairs or windows are not heads and are refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interp.hooks.head_names import head_name, head_place
from interp.hooks.sealed import understood
from interp.hooks.sites import layer_of
from interp.kernels.errors import InterpError
from interp.metrics.named import unit
from interp.reading import parquet
from interp.results.effects import Effects
from interp.results.heads_table import POSITIONS, method_of, read_heads
from interp.saving import renamed

if TYPE_CHECKING:
    from interp.hooks.anatomy.towers import Anatomy

SCHEMA = 1
DIGITS = 6
COLUMNS: dict[str, str] = {
    "schema": "int64",
    "model": "string",
    "revision": "string",
    "task": "string",
    "tower": "string",
    "layer": "int64",
    "head": "int64",
    "site": "string",
    "kv_group": "int64",
    "method": "string",
    "direction": "string",
    "ablation": "string",
    "metric": "string",
    "split": "string",
    "n": "int64",
    "estimate": "float64",
    "low": "float64",
    "high": "float64",
    "noise_floor": "float64",
    "exact": "float64",
    "verified": "boolean",
    "rank": "int64",
    "label": "string",
}
"""Name and type. `direction` is denoise, noise or none; `exact` the exactly patched value where the row is an estimate,
`verified` whether there is one; `rank` within method, direction and tower, 1 first: the result's own where it has one,
else by magnitude."""
UNSAID = "not said"
"""The ablation of a result that does not say what was put in the head's place; "none" is that of one that put none."""


def head_rows(result: Any, anatomy: Anatomy, **given: Any) -> Any:
    """The rows of one result (anything whose `to_frame()` has a site per row); `given` fills columns it does not know,
    such as model=, task= and split=, and replaces those it does."""
    if isinstance(result, Effects):
        return _joined([_of_effects(one, anatomy, given) for one in (result, result.reverse) if one is not None])
    known = {"method": method_of(result), **dict(getattr(result, "meta", None) or {}), **given}
    return _filled(read_heads(result), anatomy, known)


def _of_effects(effects: Effects, anatomy: Anatomy, given: Mapping[str, Any]) -> Any:
    if effects.positions is not None:
        raise InterpError(POSITIONS)
    corruption = str(effects.meta.get("corruption", UNSAID))
    known = {
        "method": effects.meta.get("method", "patch"),
        "direction": direction(effects),
        "ablation": "resample" if corruption == "run" else corruption,
        "metric": unit(effects.meta.get("metric")),
    }
    return _filled(read_heads(effects), anatomy, {**known, **given})


def direction(effects: Effects) -> str:
    """Denoise where the source does better than the base, noise where it does worse, none where there is neither."""
    if effects.source is None:
        said = str(effects.meta.get("corruption", UNSAID))
        made = said in ("zero", "mean", "noise") or said.startswith(("mean of a dataset", "Noise("))
        return "noise" if made else "none"
    return "denoise" if float((effects.source - effects.base).mean()) > 0 else "noise"


def _filled(frame: Any, anatomy: Anatomy, known: Mapping[str, Any]) -> Any:
    """The frame with every column of the schema, in its order."""
    import pandas

    places = [head_place(str(site)) for site in frame["site"]]
    towers = [anatomy.tower(place.tower, text=head_name(*place)) for place in places]
    layers, heads = [place.layer for place in places], [place.head for place in places]
    groups = [
        head // tower.layer(layer).group if layer in tower.by_index else head
        for tower, layer, head in zip(towers, layers, heads, strict=True)
    ]
    columns = {name: frame[name].tolist() for name in COLUMNS if name in frame.columns}
    columns = {name: [known[name]] * len(frame) if name in known else columns.get(name) for name in COLUMNS}
    if "method" in frame.columns and frame["method"].notna().all():
        columns["method"] = frame["method"].tolist()
    columns |= {"schema": [SCHEMA] * len(frame), "tower": [tower.name for tower in towers],
                "layer": list(map(layer_of, layers)), "head": heads, "kv_group": groups,
                "estimate": frame["estimate"].tolist(), "site": [head_name(*place) for place in places]}  # fmt: skip
    made = pandas.DataFrame({name: _typed(values, len(frame), COLUMNS[name]) for name, values in columns.items()})
    own = "rank" in frame.columns and bool(frame["rank"].notna().all())  # measures for which a low value is a large one
    return made if own else ranked(made)


def _typed(values: list[Any] | None, count: int, kind: str) -> Any:
    import pandas

    empty: dict[str, Any] = {"string": "", "int64": 0, "float64": float("nan"), "boolean": None}
    held = [empty[kind]] * count if values is None else [empty[kind] if v is None else v for v in values]
    if kind == "float64":
        held = [float(f"{float(v):.{DIGITS}g}") for v in held]
    if kind == "string":
        held = [str(v) for v in held]
    return pandas.Series(held, dtype=kind)


def ranked(frame: Any) -> Any:
    """The frame with ranks by magnitude within method, direction and tower; ties in the order they come."""
    size = frame["estimate"].abs()
    order = size.groupby([frame["method"], frame["direction"], frame["tower"]]).rank(
        ascending=False, method="first", na_option="bottom"
    )
    return frame.assign(rank=order.astype("int64"))


def _joined(frames: Iterable[Any]) -> Any:
    import pandas

    return pandas.concat(list(frames), ignore_index=True)


def joined(frames: Iterable[Any]) -> Any:
    """Several tables of rows as one, which still has the schema's columns where there are none."""
    held = [frame for frame in frames if len(frame)]
    if held:
        return _joined(held)
    import pandas

    return pandas.DataFrame({name: _typed([], 0, kind) for name, kind in COLUMNS.items()})


def write_rows(frame: Any, folder: str | Path) -> tuple[Path, Path]:
    """`heads.csv` and `heads.parquet`, each there whole or not at all."""
    from io import BytesIO

    to = Path(folder)
    to.mkdir(parents=True, exist_ok=True)
    sink = BytesIO()
    frame.to_parquet(sink, index=False)
    renamed(to / "heads.csv", frame.to_csv(index=False, float_format=f"%.{DIGITS}g", lineterminator="\n").encode())
    renamed(to / "heads.parquet", sink.getvalue())
    return to / "heads.csv", to / "heads.parquet"


def read_rows(folder: str | Path) -> Any:
    """The rows of a report's directory."""
    file = Path(folder) / "heads.parquet"
    if not file.is_file():
        raise InterpError(f"{folder} holds no heads.parquet: expected the directory of a report.")
    frame = parquet(file)
    missing = [name for name in COLUMNS if name not in frame.columns]
    newest = 0
    if not missing and len(frame):
        with understood(file):
            newest = int(frame["schema"].max())
    if missing or newest > SCHEMA:
        what = f"no column {missing[0]!r}" if missing else f"schema {newest}"
        raise InterpError(f"{file} has {what}; this version reads schema {SCHEMA}.")
    return frame
