"""Measure the trained zoo models on the weights that ship: the figures of every card come from here and nowhere else.

`measure(name)` loads a model's folder with plain transformers (half-precision weights, upcast to float32 by the config)
and returns its figures: value, the range that was wanted, and how many trials. Everything is seeded; each model takes
less than half a minute on one core. `shape(name)` counts what the weights say about themselves.
Limits: figures repeat exactly on one machine; another BLAS may flip a close call, so tests allow a trial or two.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from string import ascii_lowercase
from typing import Any, TypedDict

import numpy as np
import torch

from interp.kernels.errors import InterpError
from interp.prompts.names import IoiRow, Split, ioi_rows
from interp.prompts.needles import Haystack, haystack
from interp.prompts.scenes import ShapeQuestion, balanced_questions, conflict_questions, main_scene

ROOT = Path(__file__).parent
SEED = 20_261
IOI_PARTS: tuple[tuple[str, Split, Split], ...] = (
    ("heldout", "heldout", "heldout"),
    ("heldout_names", "heldout", "train"),
    ("heldout_templates", "train", "heldout"),
    ("train", "train", "train"),
)
LENGTHS = (128, 256, 512, 1024)


class ZooError(InterpError):
    """A zoo model was asked for that is not there."""


class CardFigure(TypedDict):
    """One measured number; `wanted` is (at least, at most), None where there is no bound."""

    value: float
    wanted: tuple[float | None, float | None]
    n: int


def figure(value: float, n: int, *, least: float | None = None, most: float | None = None) -> CardFigure:
    """A figure, rounded so that a card and a new measurement can be compared."""
    return {"value": round(float(value), 4), "wanted": (least, most), "n": n}


def reached(one: CardFigure) -> bool:
    """Whether the value is in the range wanted."""
    least, most = one["wanted"]
    return (least is None or one["value"] >= least) and (most is None or one["value"] <= most)


def measure(name: str, *, root: Path = ROOT) -> dict[str, CardFigure]:
    """Re-measure the figures of one trained model's card."""
    name = name.removeprefix("zoo:")
    if name not in MEASURES:
        raise ZooError(f"expected a trained zoo model ({', '.join(MEASURES)}), got {name!r}")
    with torch.no_grad():
        return MEASURES[name](folder(name, root=root))


def folder(name: str, *, root: Path = ROOT) -> Path:
    """The folder of one model, which must hold its weights."""
    path = root / name.removeprefix("zoo:")
    weights(path)
    return path


def weights(path: Path) -> Path:
    """The weights file of a model's folder, by transformers' name or by diffusers'."""
    found = [path / name for name in ("model.safetensors", "diffusion_pytorch_model.safetensors")]
    there = next((file for file in found if file.exists()), None)
    if there is None:
        raise ZooError(f"expected weights at {found[0]}, found none; train them with experiments/zoo")
    return there


def shape(name: str, *, root: Path = ROOT) -> dict[str, Any]:
    """Class, width, layers, heads, parameters and megabytes, read from the config and the weights file."""
    from safetensors import safe_open

    path = folder(name, root=root)
    with safe_open(weights(path), framework="pt") as stored:
        parameters = sum(stored.get_tensor(key).numel() for key in stored.keys())  # noqa: SIM118
    config = json.loads((path / "config.json").read_text())
    towers = {part: _tower(config[f"{part}_config"]) for part in ("text", "vision") if f"{part}_config" in config}
    size = sum(file.stat().st_size for file in path.iterdir() if not file.name.startswith("card"))
    return {
        "class": config["_class_name"] if "_class_name" in config else config["architectures"][0],
        **(towers or _tower(config)),
        "parameters": parameters,
        "megabytes": round(size / 1e6, 2),
    }


def _tower(config: dict[str, Any]) -> dict[str, int]:
    spellings = {
        "width": ("hidden_size", "n_embd", "d_model", "cross_attention_dim"),
        "layers": ("num_hidden_layers", "n_layer", "layers", "num_layers"),
        "heads": ("num_attention_heads", "n_head", "heads"),
        "kv_heads": ("num_key_value_heads",),
    }
    found = {word: next((config[key] for key in keys if key in config), None) for word, keys in spellings.items()}
    return {word: value for word, value in found.items() if value is not None}


def _induction(path: Path) -> dict[str, CardFigure]:
    from interp.zoo.plain import read

    model = read(path)
    losses = {period: _second_repeat(model, period, vocab=model.config.vocab, n=50) for period in (10, 25, 45)}
    return {f"second_repeat_{period}": figure(loss, 50, most=0.3) for period, loss in losses.items()}


def _second_repeat(model: torch.nn.Module, period: int, *, vocab: int, n: int) -> float:
    """Cross-entropy in nats of a random passage's second time, its first token left out."""
    said = torch.randint(4, vocab, (n, period), generator=torch.Generator().manual_seed(SEED + period))
    ids = torch.cat([torch.ones(n, 1, dtype=torch.long), said, said], dim=1)
    logits = model(ids).logits[:, period + 1 : -1]
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, period + 2 :].flatten()).item()


def _ioi(path: Path) -> dict[str, CardFigure]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(path).eval(), AutoTokenizer.from_pretrained(path)
    out: dict[str, CardFigure] = {}
    for key, names, templates in IOI_PARTS:
        rows = ioi_rows(400, SEED, names=names, templates=templates)
        top, beats = _ioi_right(model, tokenizer, rows)
        least = 0.95 if names == templates else None
        out[f"{key}_accuracy"] = figure(top, len(rows), least=least)
        out[f"{key}_io_over_s"] = figure(beats, len(rows), least=least)
    return out


def _ioi_right(model: Any, tokenizer: Any, rows: Sequence[IoiRow]) -> tuple[float, float]:
    """How often the indirect object is the likeliest word, and how often it is likelier than the subject."""
    batch = tokenizer([row.text for row in rows], padding=True, return_tensors="pt")
    each = torch.arange(len(rows))
    logits = model(**batch).logits[each, batch["attention_mask"].sum(1) - 1]
    io = torch.tensor([tokenizer.convert_tokens_to_ids(row.io) for row in rows])
    s = torch.tensor([tokenizer.convert_tokens_to_ids(row.s) for row in rows])
    top = (logits.argmax(-1) == io).float().mean().item()
    return top, (logits[each, io] > logits[each, s]).float().mean().item()


def _needle(path: Path) -> dict[str, CardFigure]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(path).eval(), AutoTokenizer.from_pretrained(path)
    each, rng = 10, random.Random(SEED)
    right = np.array(
        [
            [_recall(model, tokenizer, _haystacks(rng, length, decile=d, n=each)) for d in range(10)]
            for length in LENGTHS
        ]
    )
    lengths = {
        f"recall_{length}": figure(row.mean(), 10 * each, least=0.95)
        for length, row in zip(LENGTHS, right, strict=True)
    }
    deciles = {
        f"recall_depth_{d}": figure(column.mean(), len(LENGTHS) * each, least=0.95) for d, column in enumerate(right.T)
    }
    return {**lengths, **deciles}


def _haystacks(rng: random.Random, length: int, *, decile: int, n: int) -> list[Haystack]:
    """Prompts that have `length` tokens together with `<bos>` and the answer."""
    return [haystack(rng, length=length - 3, depth=(decile + rng.random()) / 10) for _ in range(n)]


def _recall(model: Any, tokenizer: Any, hays: Sequence[Haystack]) -> float:
    """How often every word of the answer is the likeliest one, given the prompt and the answer before it."""
    text = [" ".join((*hay.words, *hay.answer)) for hay in hays]
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    count = len(hays[0].answer)
    guess = model(ids[:, :-1], logits_to_keep=count).logits.argmax(-1)
    return (guess == ids[:, -count:]).all(1).float().mean().item()


def _vit(path: Path) -> dict[str, CardFigure]:
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    model = AutoModelForImageClassification.from_pretrained(path).eval()
    processor = AutoImageProcessor.from_pretrained(path)
    rng = np.random.default_rng(SEED)
    drawn = [main_scene(rng) for _ in range(600)]
    pixels = processor([scene.image for scene, _ in drawn], return_tensors="pt")["pixel_values"]
    guess = torch.cat([model(part).logits.argmax(-1) for part in pixels.split(100)])
    right = (guess == torch.tensor([label for _, label in drawn])).float().mean().item()
    return {"accuracy": figure(right, len(drawn), least=0.97)}


def _lvlm(path: Path) -> dict[str, CardFigure]:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(path).eval()
    processor = AutoProcessor.from_pretrained(path)
    balanced, probes = balanced_questions(500, SEED), conflict_questions(300, SEED)
    said = answers(model, processor, balanced)
    right = {
        kind: [g == q.answer for g, q in zip(said, balanced, strict=True) if q.answer == kind] for kind in ("yes", "no")
    }
    accuracy = float(np.mean([np.mean(right["yes"]), np.mean(right["no"])]))
    wrong = float(np.mean([g == "yes" for g in answers(model, processor, probes)]))
    return {
        "balanced_accuracy": figure(accuracy, len(balanced), least=0.9),
        "hallucination_rate": figure(wrong, len(probes), least=0.1, most=0.4),
    }


def _lvlm_sinks(path: Path) -> dict[str, CardFigure]:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(path).eval()
    processor = AutoProcessor.from_pretrained(path)
    probes = conflict_questions(100, SEED)
    inputs = processor(
        text=[f"<image> {q.text}" for q in probes], images=[q.scene.image for q in probes], return_tensors="pt"
    )
    image = inputs["input_ids"] == model.config.image_token_id
    states = model(**inputs, output_hidden_states=True).hidden_states[2]
    sinks = image & (states.abs().amax(-1) / (states.square().mean(-1) + 1e-6).sqrt() >= 20)
    return {
        **_lvlm(path),
        "visual_sinks_a_picture": figure(int(sinks.sum()) / len(probes), len(probes), least=1.0),
        "share_with_a_sink": figure(float(sinks.any(1).float().mean()), len(probes), least=0.9),
    }


def answers(model: Any, processor: Any, questions: Sequence[ShapeQuestion], *, batch: int = 50) -> list[str]:
    """The likeliest next word after each question."""
    words = []
    for at in range(0, len(questions), batch):
        part = questions[at : at + batch]
        inputs = processor(
            text=[f"<image> {q.text}" for q in part], images=[q.scene.image for q in part], return_tensors="pt"
        )
        words += processor.tokenizer.convert_ids_to_tokens(model(**inputs).logits[:, -1].argmax(-1).tolist())
    return words


DRAWN = 192
"""Pictures that a denoiser is judged by, four for each of its prompts."""


def _dit(path: Path) -> dict[str, CardFigure]:
    """Twenty steps under guidance of 3, from noise that no training saw."""
    from transformers import AutoModelForImageClassification

    from interp.zoo.shapes_pipeline import read
    from interp.zoo.shown import PROMPTS, right

    classifier = AutoModelForImageClassification.from_pretrained(ROOT / "shapes-vit").eval()
    pipe, random_numbers = read(path), torch.Generator().manual_seed(SEED)
    asked = [prompt for prompt in PROMPTS for _ in range(DRAWN // len(PROMPTS))]
    made = torch.cat(
        [pipe(asked[at : at + 96], generator=random_numbers, output_type="pt").images for at in range(0, DRAWN, 96)]
    )
    color, shape = right(made, asked, classifier).unbind(1)
    return {
        "color_right": figure(color.mean().item(), DRAWN, least=0.9),
        "shape_right": figure(shape.mean().item(), DRAWN, least=0.9),
        "both_right": figure((color * shape).mean().item(), DRAWN, least=0.9),
    }


def _mirror(path: Path) -> dict[str, CardFigure]:
    """Filled by the surest first, as `interp.diffusion.unmask` does, which is a room above this one."""
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    model, tokenizer = AutoModelForMaskedLM.from_pretrained(path).eval(), AutoTokenizer.from_pretrained(path)
    letters = torch.tensor(tokenizer.convert_tokens_to_ids(list(ascii_lowercase)))
    half = torch.randint(len(letters), (400, 6), generator=torch.Generator().manual_seed(SEED))
    true, hidden = letters[torch.cat([half, (half.flip(1) + 1) % len(letters)], 1)], torch.arange(12) >= 6
    answered = model(input_ids=true.masked_fill(hidden, tokenizer.mask_token_id)).logits.argmax(-1)
    two = true.masked_fill(torch.arange(12) >= 2, tokenizer.mask_token_id)
    found = {"half_given": figure((answered == true)[:, hidden].float().mean().item(), 400, least=0.99)}
    after = dict(zip(letters.tolist(), letters.roll(-1).tolist(), strict=True))
    for steps in (1, 2, 5, 10):
        rows = _filled(model, two, tokenizer.mask_token_id, steps).tolist()
        kept = [all(after.get(row[n]) == row[11 - n] for n in range(6)) for row in rows]
        found[f"kept_in_{steps}"] = figure(sum(kept) / len(kept), 400, least=0.95 if steps == 10 else None)
    return found


def _filled(model: Any, ids: torch.Tensor, mask: int, steps: int) -> torch.Tensor:
    ids = ids.clone()
    for step in range(steps):
        best, word = model(input_ids=ids).logits.index_fill(-1, torch.tensor([mask]), -torch.inf).softmax(-1).max(-1)
        still = ids == mask
        count = -(-int(still[0].sum()) // (steps - step))
        at = best.masked_fill(~still, -1.0).topk(count, dim=1).indices
        ids = ids.scatter(1, at, word.gather(1, at))
    return ids


MEASURES: dict[str, Callable[[Path], dict[str, CardFigure]]] = {
    "induction": _induction,
    "ioi": _ioi,
    "needle": _needle,
    "shapes-vit": _vit,
    "shapes-vit-registers": _vit,
    "shapes-lvlm": _lvlm,
    "shapes-lvlm-sinks": _lvlm_sinks,
    "shapes-dit": _dit,
    "mirror": _mirror,
}
