"""Compile the Triton kernels for a GPU that is not here, and say what they need: registers, stack, shared memory.

    python -m interp.kernels.triton_ahead 80 90 100

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
from pathlib import Path
from typing import Any

from interp.kernels import fused

POINTERS = {
    "LOW": "i32", "HIGH": "i32", "BIASES": "fp32", "SETS": "u8", "POSITION": "i64", "Z": "fp32", "LSE": "fp32",
    "ENTROPY": "fp32", "TOP": "fp32", "AT": "i32", "DISTANCE": "fp32", "MASS": "fp32", "SHARE": "fp32",
    "RECEIVED": "fp32", "SEEN": "i32",
}  # fmt: skip


def compiled(name: str, width: int, architecture: int, *, heavy: bool = False, dtype: str = "bf16") -> dict[str, Any]:
    """Resources of the kernel `name` (forward or received) with its own configuration for this head width."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = getattr(fused.kernels(), name)
    c = fused.configuration(width, 4096, heavy=heavy)
    constants = _constants(name, c, width, heavy)
    signature = {n: _type(n, constants, dtype) for n in kernel.arg_names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, n in enumerate(kernel.arg_names) if signature[n].startswith("*")}
    source = ASTSource(kernel, signature=signature, constexprs=constants, attrs=aligned)
    options = {"num_warps": c.warps, "num_stages": c.stages}
    made = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    found = _usage(tool, made.asm["cubin"])
    return {"kernel": name, "width": width, "sm": architecture, "heavy": heavy, **found, "shared": made.metadata.shared}


def _constants(name: str, c: fused.Configuration, width: int, heavy: bool) -> dict[str, Any]:
    common = {"D": width, "DP": width, "BM": c.rows, "BN": c.keys, "CAP": False, "BIAS": False, "PRECISION": "tf32"}
    if name == "received":
        return common
    return common | {"DV": width, "DVP": width, "N_SETS": 4 if heavy else 0, "STATS": True, "FAR": heavy}


def _type(name: str, constants: dict[str, Any], dtype: str) -> str:
    if name in constants:
        return "constexpr"
    if name in ("Q", "K", "V"):
        return "*" + dtype
    if name in POINTERS:
        return "*" + POINTERS[name]
    return "fp32" if name in ("scale", "softcap") else "i32"


def _usage(tool: Path, cubin: bytes) -> dict[str, int]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        done = subprocess.run([str(tool), "-res-usage", str(path)], capture_output=True, text=True, check=True)
    found = {n: int(x) for n, x in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", done.stdout)}
    return {"registers": found["REG"], "spilled": found["STACK"] + found["LOCAL"]}


def main() -> None:
    if fused.interpreted():
        sys.exit("TRITON_INTERPRET=1 leaves nothing to compile; unset it")
    os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
    widths = [c.width for c in fused.CONFIGURATIONS]
    for architecture in [int(a) for a in sys.argv[1:]] or [80, 90, 100]:
        for width in widths:
            for name, heavy in (("forward", False), ("forward", True), ("received", False)):
                print(json.dumps(compiled(name, width, architecture, heavy=heavy)), flush=True)


if __name__ == "__main__":
    main()
