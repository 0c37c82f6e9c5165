"""A table written as CSV, parquet or JSON, whole or not at all."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

from interp.configs import ConfigError
from interp.saving import renamed


def write_table(frame: Any, path: str | Path) -> dict[str, Any]:
    """Where it went and how large it is."""
    file = Path(path)
    sink = BytesIO()
    if file.suffix == ".csv":
        sink.write(frame.to_csv(index=False, lineterminator="\n").encode())
    elif file.suffix == ".parquet":
        frame.to_parquet(sink, index=False)
    elif file.suffix == ".json":
        sink.write(frame.to_json(orient="records", indent=1).encode())
    else:
        raise ConfigError(f"--out {file}: tables are written as .csv, .parquet or .json.")
    file.parent.mkdir(parents=True, exist_ok=True)
    renamed(file, sink.getvalue())
    return {"out": str(file), "bytes": file.stat().st_size}
