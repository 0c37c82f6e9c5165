"""The zoo's shelf: everything is listed, has a card, and leaves for plain transformers with the same logits."""

from __future__ import annotations

import json

import pytest
import torch
import transformers
from denoisers import library

from interp import planted
from interp.planted.oracle import inputs
from interp.preparing.processors import processor_of
from interp.zoo import catalog
from interp.zoo.catalog import CatalogError

NAMES = [one.name for one in catalog.entries()]
DENOISER = "shapes-dit"
TRAINED = [one.name for one in catalog.entries() if one.kind == "trained"]


def example(name: str, module, processor) -> dict[str, torch.Tensor]:
    """Something each model can read."""
    if name in planted.NAMES:
        clean, _ = inputs(processor, planted.key(name).probes[0])
        return clean
    if name == DENOISER:
        words = processor.words(["a red circle .", ""])
        return {"hidden_states": processor.noise(2), "encoder_hidden_states": words, "timestep": torch.tensor([9, 999])}
    if hasattr(processor, "image_mean") and not hasattr(processor, "tokenizer"):
        side = module.config.image_size
        return {"pixel_values": torch.randn(2, 3, side, side)}
    ids = torch.randint(5, 30, (2, 12))
    if not hasattr(processor, "image_processor"):
        return {"input_ids": ids}
    vision, image = module.config.vision_config, module.config.image_token_id
    count = (vision.image_size // vision.patch_size) ** 2
    ids = torch.cat([torch.full((2, count), image), ids.where(ids != image, 4)], 1)
    return {"input_ids": ids, "pixel_values": torch.randn(2, 3, vision.image_size, vision.image_size)}


def answer(output) -> torch.Tensor:
    return output.sample if hasattr(output, "sample") else output.logits


def test_every_planted_model_is_listed_and_counted():
    assert set(catalog.PLANTED) == set(planted.NAMES)
    for name, (architecture, parameters, towers) in catalog.PLANTED.items():
        module, _ = catalog.build(name)
        assert type(module).__name__ == architecture
        assert sum(p.numel() for p in module.parameters()) == parameters
        parts = (module.config.get_text_config(), getattr(module.config, "vision_config", None))
        sizes = [(p.hidden_size, p.num_hidden_layers, p.num_attention_heads) for p in parts if p is not None]
        assert towers == tuple(sizes)


def test_the_list_shows_size_and_figures():
    lines = catalog.command("list").splitlines()
    for one in catalog.entries():
        (line,) = [line for line in lines if line.startswith(f"zoo:{one.name} ")]
        assert one.architecture in line
        assert f"{one.parameters:,}" in line
        assert all(figure in line for figure in one.figures)
        cells = line.split()
        for i, size in enumerate(zip(*one.towers, strict=True)):
            assert cells[2 + i] == "+".join(map(str, size))
        assert cells[6:8] == ([f"{one.megabytes:.2f}", f"{one.core_hours:.2f}"] if one.figures else ["code", "-"])
    assert lines[0].split()[2:8] == ["width", "layers", "heads", "parameters", "MB", "core-hours"]
    assert "MB of weights in all" in lines[-2]


@pytest.mark.parametrize("name", NAMES)
def test_every_model_has_a_card(name):
    said = catalog.command("card", f"zoo:{name}")
    assert said.startswith(f"# zoo:{name}")
    if name in planted.NAMES:
        assert all(head.site in said and head.does in said for head in planted.key(name).heads)
    else:
        assert all(figure in said for figure in catalog.entry(name).figures)


def test_a_missed_figure_is_marked(tmp_path, monkeypatch):
    folder = tmp_path / "weak"
    folder.mkdir()
    figures = {
        "accuracy": {"value": 0.5, "wanted": [0.9, None], "n": 10},
        "rate": {"value": 0.2, "wanted": [0.1, 0.4], "n": 5},
    }
    sizes = {"width": 4, "layers": 1, "heads": 2, "parameters": 12, "megabytes": 0.5, "core_hours": 0.1}
    numbers = {"name": "weak", "class": "GPT2LMHeadModel", **sizes, "figures": figures}
    (folder / "card.json").write_text(json.dumps(numbers))
    (folder / "card.md").write_text("# zoo:weak\n\nText.")
    monkeypatch.setattr(catalog, "ROOT", tmp_path)
    assert catalog.entries()[0].summary == "accuracy 0.5*  rate 0.2"
    assert "wanted at least 0.9  MISSED" in catalog.card("weak")
    assert "wanted at least 0.1 and at most 0.4\n" in catalog.card("weak") + "\n"
    assert catalog.path("weak") == folder


@pytest.mark.parametrize("name", NAMES)
def test_exports_load_in_plain_transformers_with_identical_logits(name, tmp_path):
    home = library() if name == DENOISER else transformers
    module, processor = catalog.build(name)
    written = catalog.export(name, tmp_path / "out")
    assert not (tmp_path / "out.new").exists()
    readme = (written / "README.md").read_text()
    assert readme.startswith("---\nlicense: apache-2.0")
    assert catalog.entry(name).architecture in readme or "plain module" in readme
    if catalog.entry(name).architecture == "AttentionOnly":
        assert (written / "model.safetensors").read_bytes() == (catalog.ROOT / name / "model.safetensors").read_bytes()
        return
    again = getattr(home, catalog.entry(name).architecture).from_pretrained(written).eval()
    kwargs = example(name, module, processor)
    with torch.no_grad():
        one, other = (answer(model(**kwargs)) for model in (module, again))
    assert torch.equal(one, other)
    assert again.dtype == torch.float32
    if name == DENOISER:
        from interp.zoo.shapes_pipeline import read

        assert read(written).tokenizer.get_vocab() == processor.tokenizer.get_vocab()
        return
    reader = processor_of(str(written), {"local_files_only": True})
    assert type(reader) is type(processor)
    if name in planted.NAMES:
        after, _ = inputs(reader, planted.key(name).probes[0])
        assert all(torch.equal(after[key], value) for key, value in kwargs.items())


@pytest.mark.parametrize("name", ["planted-decoder", "planted-vit", "planted-lvlm", *TRAINED[:1]])
def test_models_open_attached(name):
    model = catalog.open_zoo(f"zoo:{name}")
    assert type(model.module).__name__ == catalog.entry(name).architecture
    assert not model.module.training


def test_what_cannot_be_done_is_said(tmp_path):
    with pytest.raises(CatalogError, match="Did you mean 'planted-decoder'"):
        catalog.entry("planted-decode")
    with pytest.raises(CatalogError, match="is code, not a folder"):
        catalog.command("path", "planted-vit")
    with pytest.raises(CatalogError, match="expected a name"):
        catalog.command("card")
    with pytest.raises(CatalogError, match="expected a directory: interp zoo export planted-and DIR"):
        catalog.command("export", "planted-and")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("keep")
    with pytest.raises(CatalogError, match="empty"):
        catalog.command("export", "planted-and", str(tmp_path / "full"))
    assert (tmp_path / "full" / "mine.txt").read_text() == "keep"


def test_export_says_where_and_how_large(tmp_path):
    said = catalog.command("export", "planted-and", str(tmp_path / "new" / "deep"))
    assert str(tmp_path / "new" / "deep") in said
    assert "MB)" in said
