"""Models over two real processes (gloo), and the same in one: what both give, as numbers, for a test to compare."""

from __future__ import annotations

import datetime
import os
import traceback
import warnings
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from house import ROOT
from placed import numbers
from torch import Tensor

import interp
from interp.hooks.errors import InterpError
from interp.zoo.catalog import build
from interp.zoo.families import tiny

Found = Mapping[str, Tensor] | str
"""Numbers by where they are in a result, or what was said instead."""
Work = Callable[[int, Path], Mapping[str, Any]]
"""What a process does: from its number and a folder to what is kept of it, by name."""


def pair(work: Work, folder: Path) -> list[dict[str, Any]]:
    """Run `work` in two processes that know of each other; what each of them gave."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT)  # the processes find the module of a test by its name from the root
        mp.spawn(_one, args=(work, folder), nprocs=2)  # type: ignore[no-untyped-call]
    return [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in (0, 1)]


def _one(rank: int, work: Work, folder: Path) -> None:
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", HF_HUB_OFFLINE="1")
    wait = datetime.timedelta(seconds=120)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=2, timeout=wait
    )  # fmt: skip
    torch.save(dict(work(rank, folder)), folder / f"rank{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def said(ask: Callable[[], Any]) -> Found:
    """What a call gives, as numbers, or in which words it is refused."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return dict(numbers(ask()))
        except InterpError as reason:
            return f"refused: {reason}"
        except (RuntimeError, TypeError, ValueError, AttributeError, LookupError, AssertionError):
            return f"stopped: {traceback.format_exc()}"  # for the test to show


def over_two(module: Any, folder: Path, rank: int, **how: Any) -> Any:
    """The same weights by transformers' tensor parallel plan."""
    from transformers import AutoModelForCausalLM
    from transformers.distributed import DistributedConfig

    where = folder / "weights"  # transformers writes in the first process only
    module.save_pretrained(where)
    dist.barrier()
    return AutoModelForCausalLM.from_pretrained(where, distributed_config=DistributedConfig(**(how or {"tp_size": 2})))


def models_over_two(folder: Path, rank: int) -> Callable[[str], interp.Model]:
    """Tiny families and models of the zoo by name, over both processes where transformers has a plan for them."""

    @cache
    def made(name: str) -> interp.Model:
        module, processor = build(name) if name.startswith("zoo:") else (tiny(name), None)
        if getattr(module, "base_model_tp_plan", None) or getattr(module, "_tp_plan", None):
            own = folder / name.replace(":", "-")
            own.mkdir(exist_ok=True)
            module = over_two(module, own, rank)
        return interp.attach(module, processor)

    return made


def small() -> Any:
    """A Llama of two layers of eight heads over four kv heads, the same in every process."""
    import transformers

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=96, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=8,
        num_key_value_heads=4, initializer_range=0.3,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval()
