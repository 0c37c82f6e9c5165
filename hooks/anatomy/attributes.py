"""What configs are known to say that changes attention or the residual path, and what the hook layer makes of it.

Idea: a number in a config can move every score or every residual without changing a shape, so a tool that does not know
it reads the wrong tensor and nothing complains. Each such attribute is on this list: `handled`, with how, and a tiny
model with it on and off that passes every check (`tests/floor2_hooks/anatomy/test_attributes.py`), or `refused`, by
name and with the reason, before anything runs. Cost: reads configs only. Limits: a new attribute is not on the list
until somebody puts it there; the checks of first use (`hooks/survey/checks.py`) protect from a plausible number.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from interp.hooks.errors import ModelError

OFF: tuple[Any, ...] = (None, False, 0, 0.0, (), [], {})
ONE: tuple[Any, ...] = (*OFF, 1, 1.0)


@dataclass(frozen=True)
class Attribute:
    """One attribute of a config: what it does, and what is done about it."""

    name: str
    does: str
    verdict: Literal["handled", "refused"]
    how: str
    off: tuple[Any, ...] = OFF
    """Values that mean that it is not there."""


CALL = "the attention call brings it, and patterns are recomputed with it"
SUM = "found by arithmetic: what the block writes is what is added to the residual"
BEFORE = "it acts before the attention call, whose q, k and v are the ones recorded"
MASK = "it is in the mask of each layer's call, which patterns are recomputed with"
NONE_HERE = "layers without attention have no heads: they are not layers of the tower, and asking for one is an error"
FIRST = "`embed` is what the first layer reads"
AFTER = "it acts behind the blocks: logits are what the model returns, final_norm what its last norm returns"

ATTRIBUTES = (
    Attribute("attn_logit_softcapping", "bounds scores by a tanh (Gemma-2)", "handled", CALL),
    Attribute("final_logit_softcapping", "bounds logits by a tanh (Gemma-2)", "handled", AFTER),
    Attribute("attention_multiplier", "replaces the scale of the scores (Granite)", "handled", CALL, ONE),
    Attribute("query_pre_attn_scalar", "replaces the scale of the scores (Gemma)", "handled", CALL),
    Attribute("scale_attn_by_inverse_layer_idx", "divides scores by the layer (GPT-2)", "handled", CALL),
    Attribute("key_multiplier", "multiplies keys (Falcon-H1)", "handled", BEFORE, ONE),
    Attribute("residual_multiplier", "multiplies what blocks write (Granite)", "handled", SUM, ONE),
    Attribute("scale_depth", "multiplies what blocks write (MiniCPM)", "handled", SUM, ONE),
    Attribute("embedding_multiplier", "multiplies embeddings (Granite)", "handled", FIRST, ONE),
    Attribute("scale_emb", "multiplies embeddings (MiniCPM)", "handled", FIRST, ONE),
    Attribute("logits_scaling", "divides logits (Granite)", "handled", AFTER, ONE),
    Attribute("logit_scale", "multiplies logits (Cohere)", "handled", AFTER, ONE),
    Attribute("dim_model_base", "divides logits (MiniCPM)", "handled", AFTER),
    Attribute("use_parallel_residual", "attention and MLP read one residual (GPT-NeoX, StableLM)", "handled", SUM),
    Attribute("parallel_attn", "attention and MLP read one residual (Falcon)", "handled", SUM),
    Attribute("new_decoder_architecture", "two norms before a parallel block (Falcon)", "handled", SUM),
    Attribute("do_layer_norm_before", "False normalises after adding (OPT)", "handled", SUM),
    Attribute("use_qk_norm", "normalises q and k (Cohere, InternVL)", "handled", BEFORE),
    Attribute("qk_layernorm", "normalises q and k (Phi, StableLM, Persimmon)", "handled", BEFORE),
    Attribute("clip_qkv", "bounds q, k and v (OLMo, DBRX)", "handled", BEFORE),
    Attribute("multi_query", "one kv head for all (Falcon)", "handled", "kv heads are counted in the call"),
    Attribute("alibi", "adds a slope times distance to scores (Falcon, Bloom, MPT)", "handled",
              "z and its edits do not need it; patterns are refused there"),
    Attribute("sliding_window", "hides keys further back", "handled", MASK),
    Attribute("layer_types", "gives layers different kinds of attention, or none", "handled", f"{MASK}; {NONE_HERE}"),
    Attribute("local_attention", "hides keys further away (ModernBERT)", "handled", MASK),
    Attribute("attention_chunk_size", "hides keys of earlier chunks (Llama-4)", "handled", MASK),
    Attribute("no_rope_layers", "leaves rotary positions out of some layers (Llama-4, SmolLM3)", "handled", BEFORE),
    Attribute("attn_temperature_tuning", "scales late queries (Llama-4)", "handled", BEFORE),
    Attribute("sinks", "a learned score besides those of the keys (gpt-oss); not in the config", "handled", CALL),
    Attribute("layerscale_value", "multiplies writes per channel (DINOv2)", "handled", SUM),
    Attribute("layer_scale_init_value", "multiplies writes per channel (BEiT, InternVL)", "handled", SUM),
    Attribute("cross_attention_layers", "cross-attention behind tanh gates (Mllama)", "handled", SUM),
    Attribute("gate", "a sigmoid on what attention gives (Qwen3-Next, AFMoE, Laguna); not in the config", "handled",
              "z is what the output projection reads, and the checks show that the gate keeps heads apart"),
    Attribute("kv_lora_rank", "keys and values from a shared latent (MLA)", "handled", BEFORE),
    Attribute("num_kv_shared_layers", "late layers read earlier keys (Gemma-3n, Gemma-4)", "handled",
              "k and v are what a layer's own call reads; an edit changes that call, not those that share them"),
    Attribute("altup_num_inputs", "several residual streams (Gemma-3n)", "handled",
              "residual sites are refused by name; heads, attn_in and attn_out are right", ONE),
    Attribute("hidden_size_per_layer_input", "a second small MLP per layer (Gemma-3n, Gemma-4)", "handled",
              "MLP sites are refused by name, since two things could be meant"),
    Attribute("attn_layer_indices", "attention in some layers, Mamba in others (Bamba)", "handled", NONE_HERE),
    Attribute("attn_layer_period", "attention in some layers, Mamba in others (Jamba)", "handled", NONE_HERE),
    Attribute("block_types", "attention in some layers, recurrence in others (RecurrentGemma)", "handled", NONE_HERE),
    Attribute("attention_out_multiplier", "multiplies what attention writes (Falcon-H1)", "handled",
              "attn_out is before it; residual sums that cannot be told are refused", ONE),
    Attribute("reorder_and_upcast_attn", "attends outside the interface in eager mode (GPT-2)", "refused",
              "its attention does not use the interface then: load with attn_implementation='sdpa', or leave that"
              " setting out"),
    Attribute("lambda_std_dev", "subtracts two attentions (differential attention, DiffLlama)", "refused",
              "a head gives the difference of two patterns, normalised afterwards, so z and pattern do not fit"),
    Attribute("num_hidden_groups", "layers share one module (ALBERT)", "handled",
              "each run of it is one pass: L0@7 is the eighth pass, and L0 without @ means all of them"),
    Attribute("num_mem_blocks", "layers share attention blocks (Zamba)", "handled",
              "each place that uses one is a module, so it is a layer; several layers then have the same weights"),
    Attribute("hc_mult", "hyper-connections mix several residual streams (DeepSeek-V4)", "refused",
              "no single tensor is the residual, and compressed keys are not positions of the prompt"),
)  # fmt: skip
BY_NAME = {attribute.name: attribute for attribute in ATTRIBUTES}


def attributes(module: nn.Module) -> dict[str, Any]:
    """The listed attributes that this model has, with their values; `text_config.sliding_window` in sub-configs."""
    found: dict[str, Any] = {}
    for prefix, config in _configs(getattr(module, "config", None)):
        for attribute in ATTRIBUTES:
            value = _said(config, attribute.name)
            value = list(value) if isinstance(value, tuple) else value
            if isinstance(value, (bool, int, float, str, list)) and not any(
                value is o or value == o for o in attribute.off
            ):
                found[prefix + attribute.name] = value
    if any("sinks" in dict(child.named_parameters(recurse=False)) for child in module.modules()):
        found["sinks"] = True
    return found


def _said(config: Any, name: str) -> Any:
    """What a config says, also where it says it of the layers that say nothing else (heterogeneous configs)."""
    return vars(config)[name] if name in vars(config) else getattr(config, name, None)


def refuse_attributes(module: nn.Module) -> None:
    """Raise for the first attribute that the hook layer would misread."""
    for name, value in attributes(module).items():
        attribute = BY_NAME[name.rpartition(".")[2]]
        if attribute.verdict == "refused" and _matters(module, attribute.name, value):
            raise ModelError(f"{type(module).__name__} has {name}={value} ({attribute.does}): {attribute.how}.")


def _matters(module: nn.Module, name: str, value: Any) -> bool:
    """Whether a refused attribute acts in this very model."""
    config: Any = getattr(module, "config", None)
    if name == "reorder_and_upcast_attn":
        return bool(config._attn_implementation == "eager")
    return True


def _configs(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if config is None:
        return
    yield prefix, config
    for name in getattr(config, "sub_configs", None) or ():
        yield from _configs(getattr(config, name, None), f"{prefix}{name}.")
