"""What LXT says about a tiny random Llama, kept so that the tests can hold our rules against it.

    python experiments/lxt_fixture.py tests/data/lxt.safetensors

LXT 2.1 (Achtibat et al. 2024, arXiv 2402.05602) patches classes of transformers 4 and cannot be imported beside
transformers 5, so this runs in an environment of its own: torch 2.13.0, transformers 4.52.4, lxt 2.1. The file holds
weights, ids, the token explained per row, logits, and for the rules `attnlrp` and `cp-lrp` of LXT's efficient mode the
gradient at the embedding and at each block's input; its metadata the model's configuration and these versions.
LXT also imports torchvision for its ViTs, which are not needed here, so where it is missing an empty one stands in.
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from types import ModuleType, SimpleNamespace

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama import modeling_llama

CONFIG = {
    "vocab_size": 80, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 32, "rms_norm_eps": 1e-6, "tie_word_embeddings": False,
}  # fmt: skip
ROWS, LENGTH = 2, 9
RULES = ("attnlrp", "cp-lrp")


def main() -> None:
    out = Path(sys.argv[1])
    torch.manual_seed(0)
    model = made()
    ids, targets = torch.randint(5, CONFIG["vocab_size"], (ROWS, LENGTH)), torch.randint(5, 80, (ROWS,))
    with torch.no_grad():
        kept = {"ids": ids, "targets": targets, "logits": model(ids, use_cache=False).logits}
    kept |= {f"weights.{name}": value.contiguous() for name, value in model.state_dict().items()}
    for rule in RULES:  # LXT patches classes for good, so each rule has a process of its own
        with get_context("spawn").Pool(1) as pool:
            kept |= pool.apply(explained, (rule, model.state_dict(), ids, targets))
    versions = {name: version(name) for name in ("lxt", "torch", "transformers")}
    save_file(kept, out, metadata={"config": json.dumps(CONFIG), "versions": json.dumps(versions)})
    print(f"wrote {out}, {out.stat().st_size} bytes, {versions}")


def made() -> LlamaForCausalLM:
    """Weights large enough that softmaxes, gates and norms bend."""
    model = LlamaForCausalLM(LlamaConfig(**CONFIG, attn_implementation="eager")).eval()
    for name, weight in model.named_parameters():
        nn.init.normal_(weight, 1.0 if "norm" in name else 0.0, 0.3)
    return model


def explained(rule: str, weights: dict[str, Tensor], ids: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Gradients of the target's logit at the last position under LXT's rules, by where they were taken."""
    without_vision()
    from lxt.efficient import monkey_patch
    from lxt.efficient.models import llama

    monkey_patch(modeling_llama, llama.attnLRP if rule == "attnlrp" else llama.cp_LRP, verbose=True)
    model = made()
    model.load_state_dict(weights)
    embedded = model.get_input_embeddings()(ids).detach().requires_grad_()
    out = model(inputs_embeds=embedded, use_cache=False, output_hidden_states=True)
    read = [embedded, *out.hidden_states[1:-1]]
    score = out.logits[torch.arange(len(ids)), -1, targets].sum()
    slopes = torch.autograd.grad(score, read)
    found = {f"{rule}.logits": out.logits.detach()}
    for layer, (value, slope) in enumerate(zip(read, slopes, strict=True)):
        found |= {f"{rule}.L{layer}.value": value.detach().clone(), f"{rule}.L{layer}.slope": slope}
    return found


def without_vision() -> None:
    """An empty torchvision, where there is none."""
    if find_spec("torchvision") is not None:
        return
    names = ("torchvision", "torchvision.models", "torchvision.models.vision_transformer")
    package, models, vit = map(ModuleType, names)
    package.models, models.vision_transformer = models, vit  # type: ignore[attr-defined]
    vit.nn = SimpleNamespace(GELU=nn.GELU, LayerNorm=nn.LayerNorm, MultiheadAttention=nn.MultiheadAttention)  # type: ignore[attr-defined]
    sys.modules |= dict(zip(names, (package, models, vit), strict=True))


if __name__ == "__main__":
    main()
