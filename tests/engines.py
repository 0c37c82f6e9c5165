"""vLLM engines as tests start them: small, on a CPU, with heads that can be read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import interp

ENGINE = {"dtype": "float32", "max_model_len": 96, "max_num_seqs": 8, "block_size": 32}


def engine(folder: Path, **arguments: Any) -> Any:
    """An engine of the model in a folder."""
    import vllm

    os.environ.update(VLLM_CPU_KVCACHE_SPACE="1", VLLM_LOGGING_LEVEL="ERROR", VLLM_CPU_OMP_THREADS_BIND="nobind")
    return vllm.LLM(str(folder), **{**ENGINE, **interp.scale.vllm_arguments(), **arguments})


def preempted(llm: Any) -> int:
    """How often the engine has thrown a request's keys away so far."""
    return sum(int(m.value) for m in llm.get_metrics() if m.name == "vllm:num_preemptions")
