"""What the zoo training scripts share: a resumable loop, a word-level tokenizer, and the folder a model ships in.

A script gives `train` a loss function of (step, generator); data depend on the seed and the step alone, so that a run
that was killed and resumed sees the same batches as one that was not. Checkpoints are written by rename.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.decoders import WordPiece
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

ZOO = Path(__file__).resolve().parents[2] / "interp" / "zoo"
SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>")
IGNORE = -100


@dataclass(frozen=True)
class Recipe:
    """How long and how fast to train, and where the checkpoint and the log go; the rate holds for `hold` of the run."""

    steps: int
    lr: float
    warmup: int
    seed: int
    out: Path
    weight_decay: float = 0.01
    every: int = 100
    hold: float = 0.0
    betas: tuple[float, float] = (0.9, 0.98)


def arguments(name: str, *, steps: int, lr: float, **extra: Any) -> argparse.Namespace:
    """Parse the options every training script has, plus the ones named in `extra` with their defaults."""
    parser = argparse.ArgumentParser(description=f"train zoo:{name}")
    parser.add_argument("--out", type=Path, default=Path("runs/zoo") / name, help="checkpoint and log folder")
    parser.add_argument("--ship", type=Path, default=ZOO / name, help="folder of the finished model")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--lr", type=float, default=lr)
    parser.add_argument("--seed", type=int, default=0)
    for option, default in extra.items():
        parser.add_argument(f"--{option.replace('_', '-')}", type=type(default), default=default)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(given.seed)
    return given


def recipe(given: argparse.Namespace, *, warmup: int = 100, weight_decay: float = 0.01, hold: float = 0.0) -> Recipe:
    """The training recipe the command line asked for."""
    return Recipe(given.steps, given.lr, warmup, given.seed, given.out, weight_decay, hold=hold)


def train(
    model: torch.nn.Module,
    loss_of: Callable[[int, random.Random], torch.Tensor],
    *,
    plan: Recipe,
    evaluate: Callable[[], dict[str, float]],
) -> float:
    """Train to the end of the plan, from the last checkpoint if there is one; return core-hours (CPU time)."""
    plan.out.mkdir(parents=True, exist_ok=True)
    optimizer = torch.optim.AdamW(_groups(model, plan.weight_decay), lr=plan.lr, betas=plan.betas)
    first, hours = _resume(model, optimizer, plan.out / "checkpoint.pt")
    began, running = time.process_time(), 0.0
    for step in range(first, plan.steps):
        for group in optimizer.param_groups:
            group["lr"] = plan.lr * _schedule(step, plan)
        model.train()
        loss = loss_of(step, random.Random(plan.seed * 1_000_003 + step))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        running = loss.item() if step == first else 0.95 * running + 0.05 * loss.item()
        if (step + 1) % plan.every == 0 or step + 1 == plan.steps:
            spent = hours + (time.process_time() - began) / 3600
            _checkpoint(model, optimizer, path=plan.out / "checkpoint.pt", step=step + 1, hours=spent)
            _log(plan.out / "log.jsonl", step=step + 1, loss=running, hours=spent, **evaluate())
    return hours + (time.process_time() - began) / 3600


def _groups(model: torch.nn.Module, decay: float) -> list[dict[str, Any]]:
    parameters = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]


def _schedule(step: int, plan: Recipe) -> float:
    if step < plan.warmup:
        return (step + 1) / plan.warmup
    start = max(plan.warmup, plan.hold * plan.steps)
    done = max(0.0, (step - start) / max(1, plan.steps - start))
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def _resume(model: torch.nn.Module, optimizer: torch.optim.Optimizer, path: Path) -> tuple[int, float]:
    if not path.exists():
        return 0, 0.0
    saved = torch.load(path, weights_only=True)
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    return saved["step"], saved["hours"]


def _checkpoint(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, *, path: Path, step: int, hours: float
) -> None:
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step, "hours": hours}
    torch.save(state, path.with_suffix(".new"))
    os.replace(path.with_suffix(".new"), path)


def _log(path: Path, **row: float) -> None:
    line = json.dumps({k: round(v, 5) for k, v in row.items()})
    print(line, flush=True)
    with path.open("a") as file:
        file.write(line + "\n")


@torch.no_grad()
def start_alike(layers: Any, *, match: float = 0.5, copy: float = 0.1) -> None:
    """Let the heads of Llama layers start out matching alike tokens (above layer 0) and copying what they see.

    Queries start near their group's keys and the output projection near the values' transpose (Trockman and Kolter,
    "Mimetic Initialization of Self-Attention Layers", arXiv 2305.09828); training decides what becomes of it.
    """
    for layer in layers:
        attn, (kv, d) = layer.self_attn, layer.self_attn.k_proj.weight.shape
        keys, values = (torch.linalg.qr(torch.randn(d, kv))[0].T for _ in range(2))
        attn.k_proj.weight.copy_(keys)
        attn.v_proj.weight.copy_(values)
        source = _group_rows(attn)
        if attn.layer_idx > 0:
            attn.q_proj.weight.add_(match * keys[source])
        attn.o_proj.weight.mul_(0.5).add_(copy * values[source].T)


@torch.no_grad()
def start_inducing(layers: Any, *, match: float = 1.5, copy: float = 0.06, sharp: float = 3.0) -> None:
    """Let one kv group of layer 0 start out looking one token back, and one of layer 1 matching what it wrote.

    The same idea one step further: key biases, and the same turned back by one position, make a head look back by
    position alone, which nothing in a token's embedding can; the next layer's keys read the subspace those heads write
    to, its queries the token itself, in the slow half of the rotary dimensions, which still agree far away. A run that
    starts here has the outline of an induction circuit, with noise, and need not find it: a shortcut, said on the card.
    """
    first, second = layers[0].self_attn, layers[1].self_attn
    wide, d = first.head_dim, first.k_proj.weight.shape[1]
    own, before, seen = torch.linalg.qr(torch.randn(d, 3 * wide))[0].T.split(wide)
    rows = _group_rows(first) < wide
    angle = first.config.rope_parameters["rope_theta"] ** (-torch.arange(0, wide, 2) / wide)
    first.k_proj.bias[:wide] = sharp
    first.q_proj.bias[rows] = (sharp * torch.cat([angle.cos() + angle.sin(), angle.cos() - angle.sin()])).repeat(
        first.num_key_value_groups
    )
    first.v_proj.weight[:wide] = own
    first.o_proj.weight[:, rows] += copy * before.T.repeat(1, first.num_key_value_groups)
    slow = (torch.arange(wide) % (wide // 2) >= wide // 4)[:, None]
    second.k_proj.weight[:wide] = torch.where(slow, before, second.k_proj.weight[:wide])
    query = torch.where(slow, match * own, 0.0).repeat(first.num_key_value_groups, 1)
    second.q_proj.weight[rows] += query
    second.v_proj.weight[:wide] = seen
    second.o_proj.weight[:, rows] += copy * seen.T.repeat(1, first.num_key_value_groups)


def _group_rows(attn: Any) -> torch.Tensor:
    """For each row of the query projection, the row of the key projection it meets."""
    rows = torch.arange(attn.q_proj.weight.shape[0])
    return rows // attn.head_dim // attn.num_key_value_groups * attn.head_dim + rows % attn.head_dim


def word_tokenizer(words: Sequence[str], *, extra: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """One token a word or mark, `<bos>` put in front; `extra` are further special tokens."""
    special = (*SPECIAL, *extra)
    vocabulary = {word: i for i, word in enumerate([*special, *sorted(set(words) - set(special))])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.decoder = WordPiece(prefix="##", cleanup=True)
    tokenizer.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        additional_special_tokens=list(extra),
        clean_up_tokenization_spaces=False,
    )


def padded(rows: Sequence[Sequence[int]], *, value: int) -> torch.Tensor:
    """Right-pad rows of ids to one tensor."""
    width = max(len(row) for row in rows)
    return torch.tensor([[*row, *[value] * (width - len(row))] for row in rows])


def weighted_loss(logits: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Next-token cross-entropy, each target weighted (0 for padding), normalised by the weights' sum."""
    losses = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    return (losses * weights[:, 1:].flatten()).sum() / weights[:, 1:].sum()


def ship(model: Any, folder: Path, *, processor: Any = None) -> None:
    """Write half-precision weights whose config says float32, so that plain transformers upcasts them on load."""
    folder.mkdir(parents=True, exist_ok=True)
    model.eval().half().save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    _say_float32(config)
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    if processor is not None:
        processor.save_pretrained(folder)


def _say_float32(config: dict[str, Any]) -> None:
    if "dtype" in config:
        config["dtype"] = "float32"
    for part in config.values():
        if isinstance(part, dict):
            _say_float32(part)


def write_card(folder: Path, prose: str, *, given: argparse.Namespace, core_hours: float, **fields: Any) -> None:
    """Write card.md (prose, nothing measured) and card.json (every number; the figures come from zoo_eval)."""
    from interp.zoo.measured import measure, reached, shape

    figures = measure(folder.name, root=folder.parent)
    numbers = {
        "name": folder.name,
        **fields,
        "steps": given.steps,
        "seed": given.seed,
        "core_hours": round(core_hours, 3),
        **shape(folder.name, root=folder.parent),
        "figures": figures,
        "not_reached": [key for key, one in figures.items() if not reached(one)],
    }
    (folder / "card.json").write_text(json.dumps(numbers, indent=2) + "\n")
    (folder / "card.md").write_text(prose.strip() + "\n")
    print(json.dumps(numbers, indent=2))
