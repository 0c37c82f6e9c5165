"""PAI, PAINT and DAMRO against their definitions: eager towers, numpy, and whole passes of the bare model."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from looking import PLACES, asked, family, picture
from models import planted
from torch import Tensor

import interp
from interp.hooks.errors import InputsError, ModelError
from interp.planted.probes import probe_task
from interp.vision import damro, pai, paint
from interp.vision.decoding.damro import outliers
from interp.vision.decoding.paint import streams
from interp.vision.decoding.without import without_pictures


def rule(p: Tensor, q: Tensor, amount: float, cutoff: float) -> Tensor:
    p, q = p.double().log_softmax(-1), q.double().log_softmax(-1)
    return ((1 + amount) * p - amount * q).masked_fill(p < np.log(cutoff) + p.amax(-1, keepdim=True), -torch.inf)


def eager(m: interp.Model, x: Any) -> Any:
    """The vision tower's own account of itself, under eager attention."""
    tower = copy.deepcopy(m.module.model.vision_tower)
    tower.set_attn_implementation("eager")
    with torch.no_grad():
        return tower(x.kwargs["pixel_values"], output_attentions=True, output_hidden_states=True), tower


def test_pai_raises_image_scores_in_the_last_row_of_late_layers_and_holds_text_against_it() -> None:
    m, x = asked("llava")
    c = pai(m, x, alpha=0.8, gamma=1.5, cutoff=0.2, first_layer=1)
    image, sites = x.roles.where("image"), ["text.L0.pattern", "text.L1.pattern", "text.L1.scores"]
    plain, now = m.run(x, record=sites), m.run(x, record=sites[:2], edits=c.edits)
    assert torch.equal(now["text.L0.pattern"], plain["text.L0.pattern"])
    assert torch.equal(now["text.L1.pattern"][:, :, :-1], plain["text.L1.pattern"][:, :, :-1])
    s = plain["text.L1.scores"][:, :, -1].double()
    s = torch.where(image[:, None].expand_as(s), s + 0.8 * s.abs(), s)
    torch.testing.assert_close(now["text.L1.pattern"][:, :, -1].double(), s.softmax(-1), atol=1e-6, rtol=1e-5)
    q = m.module(**without_pictures(m, x).kwargs).logits[:, -1].detach()
    torch.testing.assert_close(c.scores().double(), rule(now["logits"][:, -1], q, 0.5, 0.2), atol=1e-4, rtol=1e-4)
    assert c.against.mask("last").any()
    assert not bool(c.against.roles.where("image").any())
    assert {edit.site for edit in pai(m, x, heads=["text.L0.H1", "text.L1.H0"], first_layer=1).edits} == {"text.L1.H0"}


def test_gamma_of_one_is_the_emphasis_alone() -> None:
    m, x = asked("llava")
    c = pai(m, x, gamma=1.0, first_layer=0, cutoff=0.0)
    plain, alone = m.generate(x, edits=c.edits, max_new_tokens=3), c.generate(max_new_tokens=3)
    assert torch.equal(alone.ids, plain.ids)
    b, z = asked("blip-2")
    assert pai(b, z, gamma=1.0, first_layer=0).scores().shape[0] == 2


def boxed(values: np.ndarray, fence: float = 1.5) -> np.ndarray:
    low, high = np.percentile(values, [25, 75])
    return values > high + fence * (high - low)


def test_paints_tokens_are_those_of_the_eager_tower() -> None:
    m, _ = asked("llava", rows=1)
    config = copy.deepcopy(m.config)
    config.vision_config.num_hidden_layers = 2
    torch.manual_seed(4)
    deep = type(m.module)(config).eval()
    for layer in deep.model.vision_tower.encoder.layers:
        layer.self_attn.q_proj.weight.data *= 12
        layer.self_attn.k_proj.weight.data *= 25
    own = interp.attach(deep, m.processor)
    y = own.prepare(["<image>describe", "<image>What is in the image?"], images=[[picture()], [picture(seed=3)]],
                    chat=False, padding="left")  # fmt: skip
    out, _ = eager(own, y)
    local, summary = streams(own, y, share=0.25, summary_layer=-1)
    some, fewer = 0, False
    for row in range(2):
        columns = y.roles.where("image")[row].nonzero().flatten().numpy()
        s = out.attentions[0][row, :, 0, 1:].sum(0).numpy()
        u = out.attentions[-1][row, :, 0, 1:].sum(0).numpy()
        apart = boxed(u)
        most = set(np.argsort(-s, kind="stable")[: len(s) // 4].tolist()) - set(np.nonzero(apart)[0].tolist())
        assert set(summary[row].nonzero().flatten().tolist()) == set(columns[apart].tolist())
        assert set(local[row].nonzero().flatten().tolist()) == {int(columns[n]) for n in most}
        some += int(apart.sum())
        fewer |= int(boxed(u, 0.75).sum()) > int(apart.sum())
    assert some, "an outlier, or this tests half of it"
    assert fewer, "the fence decides"
    c = paint(own, y, first_layer=1, summary_layer=-1, gamma=1.2)
    assert {(edit.site, edit.amount) for edit in c.edits} == {("text.L1.H0,1", 0.7), ("text.L1.H0,1", 0.4)}
    assert torch.equal(c.edits[0].keys, local)
    assert c.generate(max_new_tokens=2).ids.shape == (2, 2)


@pytest.mark.parametrize("split", [False, True])
def test_damros_outliers_are_the_patches_that_the_class_token_looks_at_most(split: bool) -> None:
    m, x = asked("llava")
    found = outliers(m, x, k=5, layer=None, split_heads=split)
    out, tower = eager(m, x)
    if split:
        looks = out.attentions[-1][:, :, 0].mean(1)
    else:
        block = tower.encoder.layers[-1]
        h = block.layer_norm1(out.hidden_states[-2])
        q, k = block.self_attn.q_proj(h), block.self_attn.k_proj(h)
        looks = (q[:, :1] @ k.transpose(1, 2) * 16**-0.5).softmax(-1)[:, 0]
    for row in range(2):
        best = torch.argsort(looks[row, 1:], descending=True)[:5] + 1
        assert set(found[row].nonzero().flatten().tolist()) == set(best.tolist())


def test_damros_other_branch_holds_exactly_the_k_tokens_with_their_features() -> None:
    m, x = asked("llava")
    c = damro(m, x, k=3, amount=0.5, cutoff=0.3)
    found = outliers(m, x, k=3, layer=None, split_heads=False)
    features = m.module.get_image_features(pixel_values=x.kwargs["pixel_values"]).pooler_output
    table = m.module.get_input_embeddings()
    assert c.against.roles.where("image").sum(1).tolist() == [3, 3]
    rows = []
    for row in range(2):
        kept = features[row][found[row, 1:]]
        words = x.ids[row, x.valid[row]].tolist()
        first = words.index(m.config.image_token_id)
        count = words.count(m.config.image_token_id)
        rows.append(torch.cat([table(torch.tensor(words[:first])), kept, table(torch.tensor(words[first + count :]))]))
        at = c.against.valid[row]
        torch.testing.assert_close(c.against.kwargs["inputs_embeds"][row, at], rows[row].detach())
        assert bool(
            c.against.roles.where("image")[row, at].nonzero().flatten().eq(torch.arange(first, first + 3)).all()
        )
    with torch.no_grad():
        p = m.run(x)["logits"][:, -1]
        q = torch.cat([m.module(inputs_embeds=one[None].detach()).logits[:, -1] for one in rows])
    torch.testing.assert_close(c.scores().double(), rule(p, q, 0.5, 0.3), atol=1e-4, rtol=1e-4)
    text = c.generate(max_new_tokens=4)
    assert torch.equal(text.ids[:, 0], rule(p, q, 0.5, 0.3).argmax(-1))
    said = [one.detach() for one in rows]
    for step in range(3):
        said = [torch.cat([one, table(text.ids[n, step : step + 1]).detach()]) for n, one in enumerate(said)]
        with torch.no_grad():
            mask = torch.nn.functional.pad(x.kwargs["attention_mask"], (0, step + 1), value=1)
            call = {"input_ids": torch.cat([x.ids, text.ids[:, : step + 1]], 1), "attention_mask": mask}
            p = m.module(**call, pixel_values=x.kwargs["pixel_values"],
                         position_ids=(mask.cumsum(1) - 1).clamp(min=0)).logits[:, -1]  # fmt: skip
            q = torch.cat([m.module(inputs_embeds=one[None]).logits[:, -1] for one in said])
        assert torch.equal(text.ids[:, step + 1], rule(p, q, 0.5, 0.3).argmax(-1))


def tiled(name: str) -> tuple[interp.Model, Any, Any, Any]:
    """A model that cuts pictures into tiles, two questions, its eager tower's account, and a feature a tile token."""
    module = copy.deepcopy(family(name).module)
    torch.manual_seed(6)
    for key, weight in module.model.vision_tower.named_parameters():
        if key.endswith(("q_proj.weight", "k_proj.weight", "cls_token")):
            weight.data.normal_(0, 0.3)  # or the class token looks everywhere alike
    m = interp.attach(module, family(name).processor)
    pictures = [[picture(56, 28)], [picture(28, 56, 3)]]
    x = m.prepare([f"{PLACES[name]}{text}" for text in ("What is in the image?", "describe")], images=pictures,
                  chat=False, padding="left")  # fmt: skip
    tower = copy.deepcopy(m.module.model.vision_tower)
    tower.set_attn_implementation("eager")
    with torch.no_grad():
        pixels = x.kwargs["pixel_values"]
        out = tower(pixels.flatten(0, 1) if pixels.ndim == 5 else pixels, output_attentions=True)
        features = m.run(x, record="connector.out")["connector.out"]
    return m, x, out, features


@pytest.mark.parametrize("name", ["llava_next", "internvl"])
def test_damros_other_branch_of_tiles_holds_the_outliers_of_the_whole_view(name: str) -> None:
    m, x, out, features = tiled(name)
    c = damro(m, x, k=2, layer=-1, split_heads=True)
    tiles = len(features) // 2
    assert tiles == 3
    table, image = m.module.get_input_embeddings(), m.config.image_token_id
    for row in range(2):
        whole = row * tiles + (0 if name == "llava_next" else tiles - 1)
        looks = out.attentions[-1][whole, :, 0, 1:].mean(0)
        if name == "internvl":
            looks = looks.view(2, 2, 2, 2).mean((1, 3)).flatten()
        kept = features[whole].flatten(0, -2)[torch.argsort(looks, descending=True)[:2].sort().values]
        end = [m.module.model.image_newline.detach()[None]] if name == "llava_next" else []
        words = x.ids[row, x.valid[row]]
        first, count = words.tolist().index(image), int((words == image).sum())
        want = torch.cat([table(words[:first]), kept, *end, table(words[first + count :])]).detach()
        torch.testing.assert_close(c.against.kwargs["inputs_embeds"][row, c.against.valid[row]], want)
    assert c.against.roles.where("image").sum(1).tolist() == [2 + (name == "llava_next")] * 2
    assert c.generate(max_new_tokens=2).ids.shape == (2, 2)


@pytest.mark.parametrize("name", ["llava_next", "internvl"])
def test_paints_streams_are_chosen_view_by_view(name: str) -> None:
    m, x, out, features = tiled(name)
    local, summary = streams(m, x, share=0.25, summary_layer=-1)
    looks = out.attentions[0][:, :, 0, 1:].sum(1).view(2, len(features) // 2, 4, 4)
    for row in range(2):
        if name == "internvl":
            views = list(looks[row].view(-1, 2, 2, 2, 2).mean((2, 4)).flatten(1))
        else:  # the base view, then two tiles side by side or one over the other; none of them is padded here
            wide = torch.cat(list(looks[row, 1:]), dim=1 - row)
            views = [looks[row, 0].flatten(), torch.nn.functional.pad(wide, (0, 1), value=-1.0).flatten()]
        at = x.roles.where("image")[row].nonzero().flatten()
        assert len(at) == sum(map(len, views))
        for here, values in zip(at.split(list(map(len, views))), views, strict=True):
            cells = values >= 0
            apart = torch.from_numpy(boxed(values[cells].numpy()))
            assert torch.equal(summary[row, here[cells]], apart)
            most = values[cells].topk(int(cells.sum()) // 4).indices
            assert torch.equal(local[row, here[cells]], torch.isin(torch.arange(int(cells.sum())), most) & ~apart)
            assert not (local | summary)[row, here[~cells]].any()


def test_several_pictures_in_a_text_keep_their_own_outliers() -> None:
    m, _ = asked("llava")
    pictures = [[picture(seed=1), picture(seed=2)], [picture(seed=3)]]
    x = m.prepare(["<image> is not <image> image", "<image> red"], images=pictures, chat=False, padding="left")
    c = damro(m, x, k=2)
    assert c.against.roles.where("image").sum(1).tolist() == [4, 2]
    found = outliers(m, x, k=2, layer=None, split_heads=False)
    features = m.module.get_image_features(pixel_values=x.kwargs["pixel_values"]).pooler_output
    want = torch.cat([features[n][found[n, 1:]] for n in range(3)])
    got = c.against.kwargs["inputs_embeds"][c.against.roles.where("image")]
    torch.testing.assert_close(got, want.detach())
    assert c.generate(max_new_tokens=2).ids.shape == (2, 2)


def test_a_qformer_with_hidden_patches_is_one_that_is_given_the_others_alone() -> None:
    m, x = asked("blip-2")
    c = damro(m, x, k=3, layer=-1, split_heads=True, amount=1.0)
    found = outliers(m, x, k=3, layer=-1, split_heads=True)
    seen: list[Tensor] = []
    handle = m.module.qformer.register_forward_hook(lambda *a: seen.append(a[2].last_hidden_state.detach()))
    m.run(x, edits=c.against_edits)
    handle.remove()
    with torch.no_grad():
        patches = m.module.vision_model(pixel_values=x.kwargs["pixel_values"]).last_hidden_state
        few = torch.stack([one[at] for one, at in zip(patches, found, strict=True)])
        want = m.module.qformer(query_embeds=m.module.query_tokens.expand(2, -1, -1), encoder_hidden_states=few)
    torch.testing.assert_close(seen[0], want.last_hidden_state, atol=1e-5, rtol=1e-4)


def test_what_these_methods_cannot_do_is_refused_in_words() -> None:
    m, x = asked("llava")
    text = m.prepare(["What is"], chat=False)
    refused: list[tuple[Any, str]] = [
        (lambda: pai(m, text), "PAI: row 0 holds no image token"),
        (lambda: paint(m, text), "PAINT: row 0 holds no image token"),
        (lambda: damro(m, text), "DAMRO: row 0 holds no image token"),
        (lambda: pai(m, x), "first_layer=2 leaves no head to change"),
        (lambda: pai(m, x, first_layer=0, gamma=0.5), "gamma= is at least 1"),
        (lambda: pai(*asked("blip-2"), first_layer=0), "cannot run without pixel_values"),
        (lambda: pai(*asked("mllama"), first_layer=0), "by cross-attention"),
        (lambda: paint(m, x, share=0.0), "share= of the patches"),
        (lambda: paint(*asked("qwen2_5_vl")), "this tower has none"),
        (lambda: paint(*asked("blip-2"), first_layer=0, summary_layer=-1), "no map from tokens to patches"),
        (lambda: damro(*asked("internvl"), k=9, layer=-1), "1 to 4; got 9"),
        (lambda: damro(*asked("smolvlm"), k=2), "this tower has none"),
        (lambda: damro(m, x, k=17), "1 to 16; got 17"),
        (lambda: damro(m, x, k=2, layer=9), "the vision tower has layers"),
        (lambda: damro(*asked("blip-2"), k=2, layer=-1).generate(), "generates with a module inside"),
        (lambda: pai(planted("planted-decoder"), "fox = apple"), "holds no image token"),
        (lambda: m.prepare(["<image>x"], images=[[picture(), picture()]], chat=False), "image"),
    ]
    for call, says in refused:
        with pytest.raises(interp.InterpError, match=says):
            call()
    assert not m.handles()
    assert issubclass(ModelError, interp.InterpError)
    assert issubclass(InputsError, interp.InterpError)


def test_looking_does_not_change_a_model_that_has_nothing_to_gain() -> None:
    """The planted model reads the asked square with weight 0.9997: held against text alone it says the same colour."""
    m = planted("planted-lvlm")
    task = probe_task("planted-lvlm", model=m)
    for c in (pai(m, task.clean, first_layer=0), damro(m, task.clean, k=3)):
        assert c.scores().argmax(-1).tolist() == [row[0] for row in task.answer_ids]
