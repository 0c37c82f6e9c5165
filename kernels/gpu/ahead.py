"""Compile the Triton kernels for a GPU that is not here, and say what they need: registers, stack, shared memory.

    python -m interp.kernels.gpu.ahead 80 90 100

Triton's wheel brings ptxas and cuobjdump, so this works on any Linux machine. A stack above 0 bytes means registers
spilled. Not under TRITON_INTERPRET=1, which replaces the kernels by Python.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from interp.kernels.errors import known
from interp.kernels.gpu import launch
from interp.kernels.gpu.configurations import CONFIGURATIONS, configuration

FLOATS = (
    "BIASES", "UP", "DOWN", "TEMPERS", "LSE", "Z", "ENTROPY", "TOP", "DISTANCE", "MASS", "BEST", "DELTA", "DZ",
    "DENTROPY", "DDISTANCE", "DMASS", "DQ", "DK", "DV_", "DTEMPER", "FACTOR", "EVEN", "OWN", "RECEIVED",
)  # fmt: skip
COUNTS = ("heads", "group", "rows", "keys", "span", "low_batch", "table_batch", "table_head", "most")
TYPES = {
    **dict.fromkeys(FLOATS, "*fp32"),
    **dict.fromkeys(("KEEP", "BITS", "SETS", "CELL"), "*u8"),
    **dict.fromkeys(("LOW", "HIGH", "COUNT", "INDEX", "PART", "WHICH", "AT", "BEST_AT", "SEEN"), "*i32"),
    "POSITION": "*i64", "scale": "fp32", "softcap": "fp32", **dict.fromkeys(COUNTS, "i32"),
}  # fmt: skip
"""Of every parameter of a kernel but q, k and v, which come in the dtype of the call."""

FLAGS = ("STATS", "FAR", "TABLE", "KEPT", "CAP", "TEMPER", "BIAS", "SLOPE", "PER_ROW", "CELLS", "BLEND")
EDITED = {"CAP": True, "TEMPER": True, "BIAS": True, "SLOPE": True, "PER_ROW": True}
HEAVY = {"N_SETS": 4, "FAR": True}
CASES: dict[str, tuple[str, bool, dict[str, Any]]] = {
    "forward": ("forward", False, {}),
    "forward, statistics": ("forward", False, {"STATS": True}),
    "forward, masses": ("forward", True, {"STATS": True, **HEAVY}),
    "forward, top 8": ("forward", True, {"STATS": True, "TOPK": 8}),
    "forward, edited": ("forward", True, {"STATS": True, **EDITED}),
    "forward, no values": ("forward", False, {"STATS": True, "VALUES": False}),
    "forward, blocks": ("forward", False, {"STATS": True, "TABLE": True}),
    "decode": ("forward", True, {"STATS": True, "TOPK": 8, "N_SETS": 4, "rows": 8}),
    "rows_gradient": ("rows_gradient", False, {}),
    "rows_gradient, masses": ("rows_gradient", True, {"STATS": True, **HEAVY}),
    "rows_gradient, edited": ("rows_gradient", True, EDITED),
    "keys_gradient": ("keys_gradient", False, {}),
    "keys_gradient, masses": ("keys_gradient", True, {"STATS": True, **HEAVY}),
    "keys_gradient, edited": ("keys_gradient", True, EDITED),
    "received": ("received", False, {}),
    "received, edited": ("received", True, {**EDITED, "CELLS": True, "BLEND": True}),
    "ranked": ("ranked", True, {**EDITED, "CELLS": True, "BLEND": True, "TOPK": 8}),
}
FAMILIES = {
    "forward": "forward", "rows_gradient": "backward", "keys_gradient": "backward", "received": "sweep",
    "ranked": "sweep",
}  # fmt: skip


def compiled(case: str, width: int, architecture: int, *, dtype: str = "bf16") -> dict[str, Any]:
    """Resources of one case with its own configuration for this head width."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    name, heavy, flags = CASES[case]
    kernel = getattr(launch.kernels(), name)
    rows, exact = flags.get("rows", 4096), dtype == "fp32"
    c = configuration(FAMILIES[name], width, rows, heavy=heavy, exact=exact)
    given = dict.fromkeys(FLAGS, False) | {"VALUES": True, "N_SETS": 0, "TOPK": 0} | flags
    given |= {"D": width, "DP": width, "DV": width, "DVP": width, "BM": c.rows, "BN": c.keys}
    given["PRECISION"] = "ieee" if dtype == "fp32" else "tf32"
    constants = {p.name: given[p.name] for p in kernel.params if p.is_constexpr}
    signature = {p.name: "constexpr" if p.is_constexpr else _type(p.name, dtype) for p in kernel.params}
    aligned = {(i,): [["tt.divisibility", 16]] for i, n in enumerate(kernel.arg_names) if signature[n].startswith("*")}
    source = ASTSource(kernel, signature=signature, constexprs=constants, attrs=aligned)
    options = {"num_warps": c.warps, "num_stages": c.stages}
    made = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    found = _usage(tool, made.asm["cubin"])
    return {"case": case, "width": width, "dtype": dtype, "sm": architecture, **found, "shared": made.metadata.shared}


def _type(name: str, dtype: str) -> str:
    return "*" + dtype if name in ("Q", "K", "V") else known(TYPES, name, "parameter of a kernel")


def _usage(tool: Path, cubin: bytes) -> dict[str, int]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        done = subprocess.run([str(tool), "-res-usage", str(path)], capture_output=True, text=True, check=True)
    found = {n: int(x) for n, x in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", done.stdout)}
    return {"registers": found["REG"], "spilled": found["STACK"] + found["LOCAL"]}


def table(architecture: int) -> Iterator[tuple[str, int, str]]:
    """Every case at every width there is a configuration for; in fp32 those that fit, on GPUs from sm_90 on.

    In fp32 gradients of heads wider than 128 spill, and on sm_80 nine cases of heads of 128 and 256, by 8 to 104 bytes.
    """
    for width in sorted({c.width for c in CONFIGURATIONS}):
        for case in CASES:
            yield case, width, "bf16"
            if architecture >= 90 and (width <= 128 or "gradient" not in case):
                yield case, width, "fp32"


def main() -> None:
    if launch.interpreted():
        sys.exit("TRITON_INTERPRET=1 means that nothing is compiled; unset it")
    os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
    for architecture in [int(a) for a in sys.argv[1:]] or [80, 90, 100]:
        for case, width, dtype in table(architecture):
            print(json.dumps(compiled(case, width, architecture, dtype=dtype)), flush=True)


if __name__ == "__main__":
    main()
