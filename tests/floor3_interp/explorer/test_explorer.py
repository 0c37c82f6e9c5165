"""The page's data without a browser: what is refused, what is stored, and that it is the model's."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from explored import HARM, harmful, made_up, pictured
from PIL import Image

import interp
from interp.explorer import looks
from interp.explorer.build import payload as built
from interp.explorer.explore import Explorer
from interp.explorer.page import PARTS, page
from interp.explorer.payload.payload import shown
from interp.explorer.payload.plain import ExplorerError
from interp.explorer.picture import png
from interp.explorer.pictured import images, pixels
from interp.zoo.families import tiny


def unpacked(block: dict[str, Any], tokens: int) -> np.ndarray:
    rows = tokens if block["rows"] is None else len(block["rows"])
    packed = np.frombuffer(base64.b64decode(block["bytes"]), dtype=np.uint8)
    return packed.reshape(len(block["sites"]), rows, block["width"]) * (tops(block) / 255)


def tops(block: dict[str, Any]) -> Any:
    """What 255 stands for, by head."""
    return block["scale"] if block["tops"] is None else np.array(block["tops"])[:, None, None]


def with_(**change: Any) -> dict[str, Any]:
    return made_up(2, 3) | change


def block_of(**change: Any) -> dict[str, Any]:
    return with_(patterns=[made_up(2, 3)["patterns"][0] | change])


ROW = {"site": "L0.H0", "method": "a", "estimate": 1.0}


@pytest.mark.parametrize(
    ("payload", "says"),
    [
        (with_(title=""), "no title"),
        (with_(colour="red"), "the payload has colour; it may have"),
        (with_(scores=[{"site": "L0.H0", "value": 1}]), "no column estimate, method"),
        (with_(scores=[ROW, ROW]), "several rows of L0.H0 and 'a'"),
        (with_(scores=[ROW | {"estimate": "big"}], methods={}), "scores.estimate holds 'big'"),
        (with_(scores=[ROW | {"estimate": float("inf")}], methods={}), "scores.estimate is infinite"),
        (with_(scores=[ROW | {"note": object()}], methods={}), "scores.note holds a object"),
        (with_(methods={"other": {}}), "methods describes other"),
        (with_(methods={"entropy": {"kind": "rainbow"}}), "'signed' or 'sequential', got 'rainbow'"),
        (with_(methods={"entropy": {"color": 1}}), "methods.entropy has color"),
        (with_(towers=[{"name": "text", "layers": 2}]), "a tower has name, layers and heads"),
        (with_(towers=[{"name": "text", "layers": 2, "heads": 4, "kv_heads": 3}]), "kv_heads must divide heads"),
        (with_(main="vision"), "main is 'vision', and the towers are text"),
        (with_(cards={"L7.H0": {}}), "cards: 'L7.H0' is no head of text"),
        (with_(cards={"L0.H0": {"role": []}}), "cards.L0.H0 has role"),
        (with_(examples=[{"name": "a", "tokens": ["b"], "roles": ["c", "d"]}], patterns=[]), "2 roles for 1 tokens"),
        (block_of(example=3), "patterns[0].example is 3, and there are 1 examples"),
        (block_of(weights=np.ones((6, 16, 15))), "expected [head, row, key] = [6, 16, 16]"),
        (block_of(weights=np.full((6, 16, 16), np.nan)), "between 0 and 1 and finite"),
        (block_of(weights=np.full((6, 16, 16), 2.0)), "between 0 and 1 and finite"),
        (block_of(weights=np.zeros((6, 16, 16), np.uint8)), "bytes need scale="),
        (block_of(rows=[16]), "names position 16 of 16 tokens"),
        (block_of(indices=np.full((6, 16, 16), 16)), "name keys from 0 to 15"),
        (with_(images=[{"png": b"GIF89a", "grid": [1, 1], "positions": [0]}]), "no PNG"),
        (with_(images=[{"png": "https://x/y.png", "grid": [1, 1], "positions": [0]}]), "images[0].png is a PNG"),
        (with_(images=[{"png": b"", "grid": [2, 2], "positions": [0]}]), "1 positions for 2 x 2 patches"),
        (with_(circuit={"edges": [{"sender": "nowhere", "receiver": "logits"}]}), "'nowhere' is no part of a circuit"),
        (with_(curves=[{"title": "c", "lines": [{"x": [1], "y": [1, 2]}]}]), "must be equally long"),
        (with_(curves=[{"title": "c", "lines": [{"x": [1], "y": [1], "kind": "bars"}]}]), "is one of line, points"),
        (with_(links=[("x", "https://elsewhere/")]), "links name files next to the page"),
        (with_(links=[("x", "javascript:alert(1)")]), "links name files next to the page"),
        (with_(links=[("x", "../secrets")]), "links name files next to the page"),
    ],
)
def test_what_does_not_make_a_page_is_refused_in_words(payload: dict[str, Any], says: str) -> None:
    with pytest.raises(ExplorerError) as refused:
        page(payload)
    assert says in str(refused.value)


def test_a_page_that_is_too_large_says_what_to_leave_out() -> None:
    with pytest.raises(ExplorerError, match="give fewer examples"):
        page(made_up(), limit=50_000)


def test_twelve_by_twelve_heads_are_under_three_megabytes() -> None:
    text = page(made_up(12, 12, length=64, examples=2))
    assert len(text.encode()) < 3_000_000


def test_the_same_payload_gives_the_same_bytes() -> None:
    assert page(made_up()) == page(made_up())


def test_the_policy_names_what_runs_and_nothing_else_is_asked_for() -> None:
    text = page(made_up())
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', text)[1]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy
    for kind in ("script", "style"):
        inside = re.search(rf"<{kind}>(.*?)</{kind}>", text, re.DOTALL)[1]
        digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert set(re.findall(r"https?://[^\s\"']+", text)) == {"http://www.w3.org/2000/svg"}


def test_strings_survive_and_cannot_leave_the_data() -> None:
    text = page(harmful())
    assert len(re.findall(r"</script", text)) == 2
    inside = re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1]
    assert not set("<>&") & set(inside)
    assert json.loads(inside)["examples"][0]["tokens"] == list(HARM)
    assert "<title>&lt;/script&gt;" in text
    text.encode()  # a lone surrogate would not


def test_weights_are_kept_to_half_a_byte_of_the_largest_of_their_head() -> None:
    payload = made_up()
    weights = payload["patterns"][0]["weights"]
    weights[:, :, :] = np.where(np.arange(24)[:, None, None] == 5, weights, weights * 1e-2)
    block = shown(payload)["patterns"][0]
    assert block["scale"] == pytest.approx(weights.max(), rel=1e-5)
    assert (np.abs(unpacked(block, 16) - weights) <= weights.max((1, 2), keepdims=True) / 255 / 2 * 1.0001).all()
    given = block_of(weights=np.full((6, 16, 16), 51, np.uint8), scale=0.5)
    assert unpacked(shown(given)["patterns"][0], 16) == pytest.approx(0.1)


def test_sites_are_spelled_one_way_and_groups_are_named() -> None:
    data = shown(pictured())
    assert [head["site"] for head in data["heads"]][-1] == "text.L1.H3"
    assert "text.L0.H1" in next(one for one in data["scores"] if one["name"] == "site")["values"]
    alone = shown({"title": "t", "scores": [ROW | {"site": "text.L2.H3.z", "estimate": -1}]})
    assert alone["towers"] == [{"name": "text", "layers": [2], "heads": [4], "kv_heads": [4]}]
    assert [one["levels"] for one in alone["scores"] if one["name"] == "site"] == [["L2.H3"]]
    assert alone["methods"][0]["kind"] == "signed"
    assert [head["kv"] for head in shown(made_up(1, 4))["heads"]] == ["L0.K0", "L0.K0", "L0.K1", "L0.K1"]


def test_what_goes_into_a_kv_head_goes_to_the_heads_of_its_group_that_speak() -> None:
    edges = [
        {"sender": "L0.H1", "receiver": "L1.K1.v_in"},
        {"sender": "L0.H1", "receiver": "L1.K0.k_in"},
        {"sender": "L1.H3", "receiver": "logits"},
    ]
    drawn = shown(made_up(2, 4) | {"circuit": {"edges": edges}})["circuit"]["edges"]
    assert [(edge["to"], edge["via"]) for edge in drawn] == [
        (["L1.H3"], "v"),
        (["L1.H0", "L1.H1"], "k"),
        (["logits"], ""),
    ]


def test_the_still_picture_has_the_colours_of_the_values() -> None:
    rows = [{"site": f"L0.H{n}", "method": "m", "estimate": v} for n, v in enumerate((-2.0, 0.0, 1.0, 2.0, None))]
    picture = Image.open(io.BytesIO(png({"title": "t 👩", "scores": rows}))).convert("RGB")
    found = [picture.getpixel((4 + 40 + n * 22 + 2, 62 + 2)) for n in range(5)]
    assert found == [(0x12, 0x46, 0x7F), (0xF7, 0xF7, 0xF7), (0xF8, 0xAB, 0x59), (0x85, 0x3A, 0x05), (255, 255, 255)]


@pytest.fixture(scope="module")
def ioi() -> tuple[Any, Any]:
    model = interp.load("zoo:ioi")
    return model, interp.tasks.ioi(model, n=4)


@pytest.fixture(scope="module")
def seen(ioi: tuple[Any, Any]) -> Explorer:
    return interp.explore(*ioi)


def test_patterns_and_statistics_are_the_models(ioi: tuple[Any, Any], seen: Explorer) -> None:
    (model, task), made = ioi, seen.payload
    data = shown(made)
    tape = model.run(task.clean, record="L*.pattern")
    for block in data["patterns"]:
        row = block["example"]
        tokens = data["examples"][row]["tokens"]
        valid = task.clean.valid[row]
        exact = torch.cat([tape[f"L{n}.pattern"][row] for n in range(4)])[:, valid][:, :, valid]
        assert np.abs(unpacked(block, len(tokens)) - exact.numpy()).max() <= 0.5001 / 255
        assert tokens == [t for t, real in zip(task.clean.tokens[row], valid, strict=True) if real]
    known = {(one["site"], one["method"]): one["estimate"] for one in made["scores"]}
    pattern = tape["L2.pattern"].double()
    entropy = -(pattern * pattern.clamp(min=1e-30).log()).sum(-1)
    valid = task.clean.valid[:, None].double()
    slow = ((entropy * valid).sum(-1) / valid.sum(-1)).mean(0)
    assert [known[f"L2.H{n}", "entropy"] for n in range(8)] == pytest.approx(slow.tolist(), abs=1e-5)


@torch.no_grad()
def test_what_a_head_promotes_is_its_share_of_the_logits(ioi: tuple[Any, Any], seen: Explorer) -> None:
    model, task = ioi
    head, module = seen.payload["cards"]["L3.H2"], model.module
    tape = model.run(task.clean, record=["L3.H2.result", "L3.resid_post"])
    last = int(task.clean.valid[0].nonzero().max())
    scale = (tape["L3.resid_post"][0, last].double().var(correction=0) + module.config.layer_norm_epsilon).sqrt()
    result = tape["L3.H2.result"][0, last].reshape(-1).double()
    centred = (result - result.mean()) / scale * module.transformer.ln_f.weight.double()
    share = module.lm_head.weight.double() @ centred
    share = share - share.mean()
    best = int(share.argmax())
    assert head["promotes"][0][0] == model.tokenizer.decode([best])
    assert head["promotes"][0][1] - head["promotes"][1][1] == pytest.approx(
        float(share.sort(descending=True).values[:2].diff().neg()), abs=1e-4
    )
    assert head["suppresses"][0][0] == model.tokenizer.decode([int(share.argmin())])


def looked_at(model: Any, x: Any, *, room: int = 10**6) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    [(tower, own)], _ = looks.stacks(model, x)
    rows = range(x.batch)
    examples = [looks.example(own, row, str(row)) for row in rows]
    return examples, looks.patterns(model, x, tower, own, rows, room)


@pytest.mark.parametrize("room", [10**6, 10_000], ids=["whole", "largest"])
def test_padding_is_left_out(ioi: tuple[Any, Any], room: int) -> None:
    model, task = ioi
    texts = [task.clean.texts[0].rpartition(" and ")[0], task.clean.texts[1]]
    for side in ("left", "right"):
        examples, blocks = looked_at(model, model.prepare(texts, padding=side), room=room)
        for text, one, block in zip(texts, examples, blocks, strict=True):
            alone = model.run([text], record="L2.pattern")["L2.pattern"][0]
            assert len(one["tokens"]) == alone.shape[-1]
            rows, found = block.get("rows", range(alone.shape[-1])), block["weights"][16:24]
            assert len(rows) >= 3
            wanted = alone[:, rows].cpu()
            if "indices" in block:
                assert torch.allclose(found, wanted.topk(8).values, atol=1e-5)
                wanted = wanted.gather(2, block["indices"][16:24]) * (found > 0)
            assert torch.allclose(found, wanted, atol=1e-5)


def test_as_many_examples_are_shown_as_have_room(ioi: tuple[Any, Any]) -> None:
    model, task = ioi
    [(tower, own)], _ = looks.stacks(model, task.clean)
    one = 32 * own.length**2
    assert [looks.fitting(tower, own, n * one) for n in (0, 2, 3, 9)] == [2, 2, 3, 4]
    assert len(built(model, task.clean)["examples"]) == min(4, task.clean.batch)


def test_rows_that_look_at_a_picture_keep_all_their_keys() -> None:
    """A map drawn from the eight heaviest of 257 patches shows what eight patches look like, not where a head looks."""
    from encoders import many_patches

    model = many_patches()
    x = model.inputs({"pixel_values": torch.randn(2, 3, 48, 48)})
    assert x.length == 257
    examples, blocks = looked_at(model, x, room=120_000)
    tape = model.run(x, record="L*.pattern")
    exact = torch.cat([tape[site].cpu() for site in model.sites("L*.pattern")], 1)
    for n, block in enumerate(blocks):
        assert "indices" not in block
        assert block["rows"][0] == 0  # the class token
        assert block["rows"][-1] == 256
        assert len(block["rows"]) > 10
        assert len(examples[n]["tokens"]) == 257
        assert torch.allclose(block["weights"], exact[n][:, block["rows"]], atol=1e-6)
    made = built(model, x, examples=2, pictures=[Image.new("RGB", (48, 48))] * 2)
    data = shown(made)
    for block in data["patterns"]:
        weights = unpacked(block, 257)
        assert weights.shape[-1] == 257
        assert (np.abs(weights.sum(-1) - 1) < 0.5 * 257 * tops(block)[..., 0] / 255 + 1e-3).all()
        assert block["scale"] == pytest.approx(float(made["patterns"][block["example"]]["weights"].max()), abs=1e-5)
    assert len(data["images"]) == 2


def test_long_texts_keep_the_largest_keys_of_some_rows() -> None:
    model = interp.load("zoo:needle")
    task = interp.tasks.needle(model, n=1, lengths=[300])
    made = built(model, task.clean, examples=1)
    [block] = made["patterns"]
    assert len(block["rows"]) <= 48
    assert block["rows"][-1] == len(made["examples"][0]["tokens"]) - 1
    layer, head, row = 1, 2, 10
    n = block["sites"].index(f"L{layer}.H{head}")
    exact = model.run(task.clean, record=f"L{layer}.H{head}.pattern")[f"L{layer}.H{head}.pattern"][
        0, 0, block["rows"][row]
    ]
    assert block["weights"][n, row].tolist() == pytest.approx(exact.topk(8).values.tolist(), abs=1e-5)
    assert exact[block["indices"][n, row]].tolist() == pytest.approx(block["weights"][n, row].tolist(), abs=1e-5)
    assert len(page(made)) < 3_000_000


def test_pictures_come_with_the_grid_of_their_tower() -> None:
    model = interp.load("zoo:shapes-lvlm")
    task = interp.tasks.shapes(model, n=2)
    made = built(model, task, examples=1)
    whole = torch.eye(37, dtype=torch.float64)
    for weights in made["patterns"][0]["weights"].reshape(3, 4, 37, 37).double():
        whole = (weights.mean(0) + torch.eye(37)) / 2 @ whole
    flow = made["examples"][0]["rollout"]
    assert torch.allclose(flow["weights"].double(), whole[flow["rows"]], atol=1e-5)
    assert torch.allclose(flow["weights"].sum(1), torch.ones(37), atol=1e-5)
    assert "rollout" not in made["examples"][1], "the rows of a text are no rollout over a picture"
    assert [one["grid"] for one in made["images"]] == [[6, 6], [6, 6]]
    vision, text = made["images"]
    assert vision["positions"] == list(range(1, 37))
    assert [made["examples"][1]["tokens"][place] for place in text["positions"]][7] == "(1,1)"
    assert np.array_equal(np.asarray(vision["png"]), np.asarray(task.rows[0].image))
    assert {site.partition(".")[0] for block in made["patterns"] for site in block["sites"]} == {"vision", "text"}


def test_pictures_are_read_off_the_pixels_where_none_are_given() -> None:
    model = interp.load("zoo:shapes-vit-registers")
    task = interp.tasks.shapes(model, n=1)
    x = model.inputs(dict(task.clean.kwargs))
    [(_, own)], _ = looks.stacks(model, x)
    [image] = images(own, 0, 0, pixels(model, x))
    assert image["positions"] == list(range(5, 41))
    assert np.abs(np.asarray(image["png"]).astype(int) - np.asarray(task.rows[0].image)).max() <= 1


def test_a_family_out_of_reach_shows_its_results_and_says_what_is_missing() -> None:
    model = interp.attach(tiny("gptj"))
    x = model.inputs(dict(model.example()))
    with pytest.raises(
        ExplorerError, match=r"there is no number to show for GPTJForCausalLM\. text: where it looks is not shown"
    ):
        interp.explore(model, x)
    other = model.inputs({**x.kwargs, "input_ids": x.ids.flip(1)})
    with pytest.warns(UserWarning, match="full forward passes"):
        effects = interp.patch(model, base=x, source=other, metric=lambda logits, _: logits[:, -1, 0], sites="L0.H*.z")
    payload = interp.explore(model, x, results=[effects]).payload
    assert {row["method"] for row in payload["scores"]} == {payload["scores"][0]["method"]}
    assert payload["warnings"] == [
        "text: where it looks is not shown, since interp does not see the attention of this family."
    ]
    page(payload)


def test_windows_are_refused_in_words() -> None:
    model = interp.attach(tiny("swin"))
    with pytest.raises(ExplorerError, match="attends in windows"):
        interp.explore(model, dict(model.example()))


def test_results_become_measures_of_the_map(ioi: tuple[Any, Any]) -> None:
    model, task = ioi
    effects = interp.patch(model, base=task.corrupt, source=task.clean, metric=task.metric, sites="L0.H*.z")
    found = interp.explore(model, task, results={"patch": effects})
    frame = effects.to_frame()
    rows = [row for row in found.payload["scores"] if row["method"] == "patch"]
    assert [row["estimate"] for row in rows] == frame["estimate"].tolist()
    assert [row["low"] for row in rows] == frame["low"].tolist()
    best = frame.loc[frame["estimate"].abs().idxmax()]
    assert f"{best['site'].removesuffix('.z')} has the largest value, {best['estimate']:+.3g}" in repr(found)
    assert shown(found.payload)["methods"][0]["kind"] == "signed"
    positions = interp.patch(
        model, base=task.corrupt, source=task.clean, metric=task.metric, sites="L3.H0.z", positions="each"
    )
    with pytest.raises(ExplorerError, match="position axis"):
        interp.explore(model, task, results=[positions])
    with pytest.raises(ExplorerError, match="has no to_frame"):
        interp.explore(model, task, results={"mine": [1, 2]})


def test_a_notebook_gets_a_page_a_picture_and_words(seen: Explorer, tmp_path: Path) -> None:
    found = seen
    bundle = found._repr_mimebundle_()
    assert set(bundle) == {"text/plain", "image/png", "text/html"}
    assert base64.b64decode(bundle["image/png"]) == found.picture()
    assert 'sandbox="allow-scripts allow-downloads"' in bundle["text/html"]
    assert bundle["text/html"].count("<script") == 1, "the frame is told the notebook's theme; the page is escaped"
    assert found.save(tmp_path / "new" / "heads.html").read_text() == found.page


def test_the_live_view_says_what_it_needs(seen: Explorer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "anywidget", None)
    with pytest.raises(interp.InterpError, match="anywidget, which is not installed"):
        seen.live()


def test_the_live_view_is_a_widget_with_a_selection(seen: Explorer) -> None:
    pytest.importorskip("anywidget", reason="anywidget is not installed")
    widget, heard = seen.live(), []
    widget.observe(lambda change: heard.append(change["new"]), "selection")
    widget.selection = {"head": "L1.H2"}
    assert heard == [{"head": "L1.H2"}]
    assert widget.page == seen.page


def test_the_parts_of_the_script_give_no_name_twice() -> None:
    """They are joined into one scope, where a second `const` of a name stops the whole page."""
    parts = [(files("interp.explorer") / f"{name}.js").read_text() for name in PARTS]
    declared = re.compile(r"^(?:const|let|class|(?:async )?function) (\w+)", re.MULTILINE)
    names = [name for text in parts for name in declared.findall(text)]
    assert sorted(names) == sorted(set(names))
