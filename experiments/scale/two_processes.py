"""A tensor-parallel model in two processes of this machine, and the same model in one: the same numbers.

    python experiments/scale/two_processes.py

Two processes of gloo load a small Llama by transformers' plan, so that each has half of the heads. Both record, edit
and rank all of them. It ends with one JSON line: the largest difference from the model in one process.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.distributed import DistributedConfig

import interp

IDS, OTHER = torch.arange(12).view(2, 6), torch.arange(40, 52).view(2, 6)


def small() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=96, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=8,
        num_key_value_heads=4, initializer_range=0.3,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def difference(logits: Tensor, inputs: object) -> Tensor:
    return logits[:, -1, 5] - logits[:, -1, 7]


def asked(m: interp.Model) -> list[Tensor]:
    tape = m.run(IDS, record="L*.z", edits=[interp.Zero("L0.H6.z")])
    effects = interp.patch(m, base=IDS, source=OTHER, metric=difference, sites="L*.H*.z")
    return [tape["L0.z"], tape["L1.z"], tape["logits"], effects.values]


def one_of_two(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2")
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=2)
    m = interp.attach(LlamaForCausalLM.from_pretrained(folder, distributed_config=DistributedConfig(tp_size=2)).eval())
    m.check().raise_failed()
    print(m.anatomy, flush=True)
    torch.save(asked(m), folder / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        small().save_pretrained(folder)
        mp.spawn(one_of_two, args=(folder,), nprocs=2)
        here = asked(interp.attach(small()))
        there = [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]
    off = max(float((a - b).abs().max()) for found in there for a, b in zip(here, found, strict=True))
    print(json.dumps({"study": "two_processes", "off": off}))
