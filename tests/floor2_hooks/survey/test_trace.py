"""What a traced call finds out, and what cannot be traced."""

from __future__ import annotations

import pytest
import torch
import transformers
from torch import Tensor, nn

import interp
from interp.hooks.errors import CheckFailed, InputsError, ModelError
from interp.hooks.examples.example import example
from interp.hooks.survey.trace import trace
from interp.zoo.every import build
from interp.zoo.families import tiny


@pytest.mark.parametrize(
    ("family", "heads", "kv_heads", "d_head", "kind"),
    [
        ("gpt2", 4, 4, 8, "causal"),
        ("llama", 4, 2, 8, "causal"),
        ("qwen3", 4, 2, 16, "causal"),
        ("bert", 4, 4, 8, "both ways"),
        ("vit", 3, 3, 16, "both ways"),
    ],
)
def test_heads_come_from_the_call(family: str, heads: int, kv_heads: int, d_head: int, kind: str | None) -> None:
    m = interp.attach(tiny(family))
    (tower,) = m.anatomy.towers.values()
    layer = tower.layers[0]
    assert (layer.heads, layer.kv_heads, layer.d_head) == (heads, kv_heads, d_head)
    assert kind is None or tower.bidirectional == (kind == "both ways")
    assert [one.index for one in tower.layers] == list(range(len(tower.layers)))


def test_a_tower_that_listens_is_not_taken_for_text() -> None:
    """Its positions are frames or patches of sound; those of the text beside it are another number."""
    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    spectrogram = transformers.ASTForAudioClassification(
        transformers.ASTConfig(**small, patch_size=4, frequency_stride=4, time_stride=4, max_length=16, num_mel_bins=8)
    ).eval()
    call = {"input_values": torch.randn(2, 16, 8)}
    assert list(trace(spectrogram, call).towers) == ["audio"]
    m = interp.attach(spectrogram, example=call)
    assert m.inputs(call).valid.shape[0] == 2  # as many positions as when it was traced
    with pytest.raises(InputsError, match="cannot tell the positions of a call with input_values"):
        m.inputs({"input_values": torch.randn(2, 8, 8)})
    sound = {"d_model": 16, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 32, "num_mel_bins": 8,
             "max_source_positions": 20}  # fmt: skip
    words = {"model_type": "qwen2", "vocab_size": 100, "num_key_value_heads": 2, **small}
    config = transformers.Qwen2AudioConfig(audio_config=sound, text_config=words, audio_token_index=90)
    both = transformers.Qwen2AudioForConditionalGeneration(config).eval()
    ids = torch.full((1, 14), 7)
    ids[0, 2:12] = 90
    call = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "input_features": torch.randn(1, 8, 40),
            "feature_attention_mask": torch.ones(1, 40, dtype=torch.long)}  # fmt: skip
    m = interp.attach(both, example=call)
    assert list(m.anatomy.towers) == ["audio", "text"]
    assert m.anatomy.main == "text"
    assert m.run(call, record="audio.L0.z")["audio.L0.z"].shape[1] == 20
    longer = {**call, **{n: torch.cat([call[n][:, :1], call[n]], 1) for n in ("input_ids", "attention_mask")}}
    edit = interp.Zero("audio.L0.H*.z", positions="first")
    with (
        torch.no_grad(),
        pytest.raises(InputsError, match=r"'audio' are not known; .*m.inputs"),
        m.edited([edit]),
    ):
        both(**longer)
    assert m.inputs(longer).tower("audio").length == 20
    with torch.no_grad(), m.edited([edit]):
        edited = both(**call).logits

    def zero(_: torch.nn.Module, args: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        changed = args[0].clone()
        changed[:, 0] = 0
        return (changed,)

    handle = both.get_submodule(m.towers["audio"].layers[0].out).register_forward_pre_hook(zero)
    with torch.no_grad():
        assert torch.equal(both(**call).logits, edited)
    handle.remove()
    call["feature_attention_mask"][0, 30:] = 0
    with pytest.raises(InputsError, match="which has padding: which of them are real is not known"):
        m.run(m.inputs(call), edits=[interp.Zero("audio.L0.z", positions="first")])


def test_every_output_projection_is_the_models() -> None:
    for family, end in (("gpt2", "attn.c_proj"), ("llama", "self_attn.o_proj"), ("bert", "attention.output.dense")):
        m = interp.attach(tiny(family))
        assert all(layer.out is not None and layer.out.endswith(end) for layer in m.anatomy.towers["text"].layers)


def test_tracing_leaves_nothing() -> None:
    module = tiny("llama")
    kwargs = example(module, batch=2)
    before = module(**kwargs).logits
    trace(module, kwargs)
    assert not any(child._forward_hooks or child._forward_pre_hooks for child in module.modules())
    assert torch.equal(module(**kwargs).logits, before)


def test_a_layer_that_runs_several_times_has_a_pass_for_each() -> None:
    """ALBERT runs one block several times."""
    config = transformers.AlbertConfig(
        vocab_size=50, embedding_size=16, hidden_size=32, num_hidden_layers=3, num_attention_heads=4,
        intermediate_size=32, max_position_embeddings=32,
    )  # fmt: skip
    m = interp.attach(transformers.AlbertForMaskedLM(config).eval())
    assert m.check().passed
    assert m.sites("L*.z") == ["L0@0.z", "L0@1.z", "L0@2.z"]
    assert not m.handles()


class Unknown(nn.Module):
    """Attention under names that nobody knows, with a softmax of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.n_lanes = 2
        self.embed = nn.Embedding(20, 16)
        self.one, self.two, self.three, self.four = (nn.Linear(16, 16) for _ in range(4))

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.embed(input_ids)
        q, k, v = (f(x).unflatten(-1, (2, 8)).transpose(1, 2) for f in (self.one, self.two, self.three))
        z = torch.softmax(q @ k.mT, -1) @ v
        made: Tensor = self.four(z.transpose(1, 2).flatten(2))
        return made


def test_a_module_without_a_family_says_what_to_pass() -> None:
    torch.manual_seed(0)
    holder = nn.Sequential(Unknown()).eval()
    m = interp.attach(holder, example={"input": torch.tensor([[1, 2, 3]])})
    with pytest.raises(ModelError, match=r"'0' computes its own softmax.*family=interp\.families\.Family"):
        m.check()
    family = interp.families.Family(
        "lanes", (), "0", out="four", heads="n_lanes", v=interp.families.Projection("three")
    )
    known = interp.attach(holder, family=family, example={"input": torch.tensor([[1, 2, 3]])})
    assert known.run({"input": torch.tensor([[1, 2, 3]])}, record="L0.z")["L0.z"].shape == (1, 3, 2, 8)
    with pytest.raises(ModelError, match="has none"):
        interp.attach(nn.ReLU().eval(), family=family, example={"input": torch.zeros(1, 3)}).check()


class Bare(Unknown):
    """Multiplies by a parameter that is in no module."""

    def __init__(self) -> None:
        super().__init__()
        self.bare = nn.Parameter(torch.ones(16, 16))

    def forward(self, input_ids: Tensor) -> Tensor:
        return super().forward(input_ids) @ self.bare


@pytest.mark.parametrize(
    ("named", "said"), [({"out": "bare"}, "bare"), ({"out": "four", "q": "gone"}, "gone"), ({"out": "twos"}, "twos")]
)
def test_a_family_that_names_what_is_no_module_is_told_so_in_words(named: dict[str, str], said: str) -> None:
    torch.manual_seed(0)
    holder = nn.Sequential(Bare()).eval()
    q = interp.families.Projection(named["q"]) if "q" in named else None
    family = interp.families.Family("lanes", (), "0", out=named["out"], heads="n_lanes", q=q)
    what = "that is a Parameter" if said == "bare" else "it has no module of that name"
    with pytest.raises(ModelError, match=rf"names '{said}' in Bare, and {what}.*embed, one, two, three, four"):
        interp.attach(holder, family=family, example={"input": torch.tensor([[1, 2, 3]])}).check()


def test_nothing_but_modules_can_be_attached() -> None:
    with pytest.raises(ModelError, match="expected a torch module"):
        interp.attach("gpt2")


def test_an_example_is_needed_where_none_can_be_made_up() -> None:
    with pytest.raises(ModelError, match="example="):
        interp.attach(nn.Linear(3, 3)).check()


@pytest.mark.parametrize("family", ["gpt2", "llama", "vit"])
def test_not_a_number_in_the_weights_is_found_where_it_arises(family: str) -> None:
    module = tiny(family)
    m = interp.attach(module)
    name = next(
        n for n, p in module.named_parameters() if ".1." in n and ("attn" in n or "attention" in n) and p.ndim == 2
    )
    with torch.no_grad():
        module.get_parameter(name)[0, 0] = float("nan")
    with pytest.raises(CheckFailed, match=r"'fired' failed: not finite: .*L1\."):
        m.run(example(module), record="L0.z")
    assert not any(child._forward_hooks for child in module.modules())


def test_weights_that_are_not_there_are_refused() -> None:
    with torch.device("meta"):
        module = transformers.GPT2LMHeadModel(
            transformers.GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=20)
        ).eval()
    m = interp.attach(module)
    with pytest.raises(ModelError, match=r"meta device, without values"):
        m.check()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_every_precision_passes_its_checks(family: str, dtype: torch.dtype) -> None:
    for attn in ("sdpa", "eager"):
        module = tiny(family, dtype=dtype, attn=attn)  # type: ignore[arg-type]
        m = interp.attach(module)
        assert m.check().passed, str(m.check())
        assert m.run(example(module), record="L0.z")["L0.z"].dtype == dtype


def test_inputs_that_do_not_fit_are_refused() -> None:
    m = interp.attach(tiny("gpt2"))
    for ids, says in (
        (torch.zeros(0, 4, dtype=torch.long), "empty batch"),
        (torch.zeros(2, 0, dtype=torch.long), "no tokens"),
        (torch.tensor([[3, 2**40]]), r"\[0, 1\] = 1099511627776 is outside"),
        (torch.tensor([[3, -1]]), "outside the vocabulary"),
        (torch.tensor([[0.5, 1.0]]), "int64 or int32"),
    ):
        with pytest.raises(InputsError, match=says):
            m.run({"input_ids": ids}, record="L0.z")
    blank = {"input_ids": torch.ones(2, 3, dtype=torch.long), "attention_mask": torch.tensor([[1, 1, 1], [0, 0, 0]])}
    with pytest.raises(InputsError, match=r"row 1 .* all padding"):
        m.run(blank, record="L0.z")
    one = m.run({"input_ids": torch.tensor([[5]])}, record=["L0.z", "L0.pattern"])
    assert one["L0.z"].shape == (1, 1, 4, 8)
    assert bool((one["L0.pattern"] == 1).all())


def test_a_model_without_logits_is_read_and_says_so() -> None:
    module = tiny("gpt2").transformer
    m = interp.attach(module)
    kwargs = {"input_ids": torch.tensor([[5, 6, 7]])}
    tape = m.run(kwargs, record=["L0.z", "final_norm"])
    assert list(tape) == ["L0.z", "final_norm"]
    with pytest.raises(interp.InterpError, match="no logits"):
        m.run(kwargs, record="logits")


@pytest.mark.parametrize("model_type", ["detr", "conditional_detr"])
def test_where_queries_begin_at_zero_the_output_projection_is_none_of_those_before_the_attention(
    model_type: str,
) -> None:
    anatomy = trace(module := build(model_type), example(module))
    outs = [layer.out for tower in anatomy.towers.values() for layer in tower.layers]
    assert len(outs) == 6
    assert all(out is not None and out.endswith("o_proj") for out in outs)
    assert "all zeros" in anatomy.towers["vision2"].layers[0].missing["resid_mid"]


def test_a_softmax_over_the_states_of_earlier_blocks_is_named_and_not_held() -> None:
    anatomy = trace(module := build("inkling2_text"), example(module))
    assert list(anatomy.towers) == ["text"]
    assert [layer.attention for layer in anatomy.towers["text"].layers] == [
        f"model.layers.{n}.self_attn" for n in range(2)
    ]
    assert sum("queries are a parameter" in said for said in anatomy.left_out()) > 0


def test_attention_on_the_encoder_is_cross_attention_also_where_it_is_called_encoder_decoder_attention() -> None:
    anatomy = trace(module := build("pix2struct"), example(module))
    assert sorted(anatomy.towers) == ["cross", "decoder", "vision"]
