"""Every generator on word-level and byte-pair tokenizers; tasks as values; what does not fit is refused."""

from __future__ import annotations

import copy
import hashlib
import json
from dataclasses import replace
from functools import cache

import numpy as np
import pandas as pd
import pytest
import torch
from denoisers import library
from PIL import Image
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
)

import interp.prompts.names
import interp.prompts.needles
from interp import planted, tasks
from interp.kernels.errors import InterpError
from interp.metrics.shipped import LogitDifference, LogProb, Probability
from interp.planted import decoder as planted_decoder
from interp.planted.probes import probe_task
from interp.planted.wiring import tokenizer as planted_tokenizer
from interp.preparing.prepare import prepare
from interp.prompts.draw import where
from interp.prompts.haystack import Needle
from interp.prompts.scenes import COLORS, SHAPES
from interp.prompts.vocabulary import TaskError, Vocabulary
from interp.tasks.task import Row, Task
from interp.zoo import catalog


class Stand:
    """What a task needs of a model, on a real module and processor."""

    def __init__(self, module, processor):
        self.module, self.processor = module.eval(), processor

    @property
    def tokenizer(self):
        return getattr(self.processor, "tokenizer", self.processor)

    def prepare(self, given, *, images=None, chat=None, continuation=None):
        return prepare(self.module, self.processor, given, images=images, chat=chat, continuation=continuation)

    def run(self, inputs):
        with torch.no_grad():
            return {"logits": self.module(**inputs.kwargs).logits}


def tiny_gpt2(vocabulary: int, positions: int = 512) -> GPT2LMHeadModel:
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=vocabulary, n_positions=positions, n_layer=1, n_head=2, n_embd=16, bos_token_id=1, eos_token_id=1
        )
    )


@cache
def word_level(kind: str) -> Stand:
    """A model whose tokenizer knows exactly the words of one zoo model."""
    words = interp.prompts.names.words() if kind == "ioi" else interp.prompts.needles.words()
    ids = {word: i for i, word in enumerate(("<pad>", "<bos>", "<eos>", "<unk>", *words))}
    inner = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    inner.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>"
    )
    return Stand(tiny_gpt2(len(ids)), tokenizer)


@cache
def byte_pairs() -> Stand:
    """A GPT-2 style tokenizer trained on the tasks' own texts, digits in pairs, no BOS."""
    inner = Tokenizer(models.BPE())
    pieces = pre_tokenizers.Split(Regex(r" ?\d{1,2}| ?[^\s\d\w]+| ?[^\W\d]+|\s+"), "isolated")
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [pieces, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    inner.decoder = decoders.ByteLevel()
    made = [getattr(tasks, name)(None, n=80) for name in TEXTS]
    texts = [row.clean + "".join(map(str, row.answers + row.wrong)) for task in made for row in task.rows]
    texts += [f" {a}{b:02d}" for a in range(11, 18) for b in range(100)] * 3
    texts += [" " + " ".join(interp.prompts.names.NAMES[split]) for split in ("train", "heldout")] * 3
    texts += [f" {letter} {letter}" for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ"] * 3
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=4000, initial_alphabet=alphabet, show_progress=False)
    inner.train_from_iterator(texts, trainer)
    return Stand(tiny_gpt2(inner.get_vocab_size()), PreTrainedTokenizerFast(tokenizer_object=inner))


@cache
def sentence_pieces() -> Stand:
    """A Llama style tokenizer: blanks are part of the word, a BOS in front."""
    inner = Tokenizer(models.BPE(unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    inner.decoder = decoders.Metaspace()
    made = [getattr(tasks, name)(None, n=80, split=split) for name in TEXTS[:3] for split in ("train", "heldout")]
    texts = [row.clean + "".join(map(str, row.answers + row.wrong)) for task in made for row in task.rows]
    texts += [" " + " ".join([*interp.prompts.names.NAMES["train"], "is are was were has have"])] * 5
    trainer = trainers.BpeTrainer(vocab_size=3000, special_tokens=["<unk>", "<s>"], show_progress=False)
    inner.train_from_iterator(texts, trainer)
    inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", bos_token="<s>", eos_token="<s>")
    return Stand(tiny_gpt2(inner.get_vocab_size()), tokenizer)


@cache
def planted_model(name: str) -> Stand:
    return Stand(*planted.build(name))


@cache
def tiny_vit() -> Stand:
    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=48,
        patch_size=16,
        id2label=dict(enumerate(SHAPES)),
        label2id={shape: i for i, shape in enumerate(SHAPES)},
    )
    return Stand(ViTForImageClassification(config), ViTImageProcessorPil(size={"height": 48, "width": 48}))


@cache
def tiny_lvlm() -> Stand:
    words = [*"is there a in the image ? yes no describe and .".split(), *SHAPES, *COLORS]
    tokenizer = planted_tokenizer(words, extra=("<image>",))
    eye = CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=48, patch_size=16
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    config = LlavaConfig(
        vision_config=eye, text_config=text, image_token_index=2, image_seq_length=9, vision_feature_layer=-1
    )
    processor = LlavaProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": 48}, crop_size={"height": 48, "width": 48}),
        tokenizer,
        patch_size=16,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    return Stand(LlavaForConditionalGeneration(config), processor)


TEXTS = ("ioi", "greater_than", "key_value", "needle", "copy_colors", "docstring", "subject_verb")
FITS = [
    *((name, byte_pairs) for name in (*TEXTS, "induction")),
    *((name, sentence_pieces) for name in ("ioi", "key_value", "induction")),
    ("ioi", lambda: word_level("ioi")),
    ("induction", lambda: word_level("ioi")),
    ("needle", lambda: word_level("needle")),
    ("induction", lambda: word_level("needle")),
    ("key_value", lambda: planted_model("planted-decoder")),
    ("induction", lambda: planted_model("planted-decoder")),
    ("shapes", tiny_vit),
    ("shapes", tiny_lvlm),
]
MISFITS = [
    ("ioi", lambda: word_level("needle"), "tokenizer has"),
    ("ioi", lambda: planted_model("planted-decoder"), "tokenizer has"),
    ("greater_than", lambda: word_level("ioi"), "splits years"),
    ("key_value", lambda: word_level("needle"), "no token for"),
    ("needle", lambda: word_level("ioi"), "tokenizer has"),
    ("copy_colors", lambda: word_level("needle"), "no token for"),
    ("docstring", lambda: word_level("needle"), "argument name"),
    ("subject_verb", lambda: word_level("needle"), "plural|noun"),
    ("ioi", tiny_vit, "no tokenizer|classes are"),
    ("needle", tiny_vit, "no tokenizer|classes are"),
    ("shapes", lambda: word_level("ioi"), "no vision tower"),
    ("shapes", lambda: planted_model("planted-lvlm"), "no token for"),
]


def lengths(inputs) -> list[int]:
    return inputs.valid.sum(1).tolist()


@pytest.mark.parametrize(("name", "host"), FITS, ids=lambda value: value if isinstance(value, str) else "")
@pytest.mark.parametrize("split", ["train", "heldout"])
def test_a_task_fits_its_model(name, host, split):
    model = host()
    task = getattr(tasks, name)(model, n=4, split=split)
    assert lengths(task.clean) == lengths(task.corrupt)
    assert all(len(ids) == 1 for row in (*task.answer_ids, *task.wrong_ids) for ids in [(i,) for i in row])
    values = task.metric(model.run(task.clean)["logits"], task.clean)
    assert values.shape == (len(task),)
    assert values.isfinite().all()
    for i, row in enumerate(task.rows):
        assert row.clean != row.corrupt or row.image != row.corrupt_image
        for span, place in ((task.positions[key].rows[i], row.positions[key]) for key in row.positions):
            assert span is not None
            if isinstance(place[0], str):
                ids = task.clean.kwargs["input_ids"][i, span[0] : span[1]].tolist()
                said = model.tokenizer.decode(ids).replace(" ", "")
                assert place[0].replace(" ", "") in said


@pytest.mark.parametrize(("name", "host", "says"), MISFITS)
def test_a_task_that_does_not_fit_says_why(name, host, says):
    with pytest.raises(TaskError, match=says):
        getattr(tasks, name)(host(), n=4)


ZOO_FITS = {
    "induction": {"induction"},
    "ioi": {"ioi", "induction"},
    "needle": {"needle", "induction"},
    "shapes-vit": {"shapes"},
    "shapes-vit-registers": {"shapes"},
    "shapes-lvlm": {"shapes", "induction"},
    "shapes-lvlm-sinks": {"shapes", "induction"},
    "planted-decoder": {"induction", "key_value"},
    "planted-lvlm": {"induction"},
}
ZOO_DIGESTS: dict[str, str] = {  # pinned: rows, ids and answers of every task that fits, on that model's own tokenizer
    "induction": "17e36f7fe5c7d2ed",
    "ioi": "9e94623e51f98dd8",
    "needle": "9ef78ed00560d999",
    "shapes-lvlm": "83b5d2d5fb0c97f8",
    "shapes-lvlm-sinks": "83b5d2d5fb0c97f8",
    "shapes-vit": "5aff7c5ef2878cef",
    "shapes-vit-registers": "5aff7c5ef2878cef",
    "planted-decoder": "b1eef319f3c9a231",
    "planted-lvlm": "34f5142bd0a0cbd7",
}


@pytest.mark.parametrize("zoo", [one.name for one in catalog.entries()])
def test_every_task_fits_a_zoo_model_or_says_why_not(zoo):
    if zoo == "shapes-dit":
        library()
    model = Stand(*catalog.build(zoo))
    fits, refused, total = set(), {}, hashlib.sha256()
    for name in tasks.__all__:
        try:
            task = getattr(tasks, name)(model, n=2)
        except TaskError as error:
            refused[name] = str(error)
            continue
        fits.add(name)
        assert lengths(task.clean) == lengths(task.corrupt)
        assert_single(model, task)
        total.update(f"{name} {digest(task)} {said(task)}".encode())
    assert all(len(reason) > 30 for reason in refused.values())
    assert fits == ZOO_FITS.get(zoo, set())
    assert not fits or total.hexdigest()[:16] == ZOO_DIGESTS[zoo]


def assert_single(model: Stand, task: Task) -> None:
    """Every answer is one token (or one class) that says just that word; teacher-forced ones are left out."""
    for sides, words in ((task.answer_ids, task.answers), (task.wrong_ids, task.wrong)):
        for ids, row in zip(sides, words, strict=True):
            assert len(ids) == len(row)
            for one, word in zip(ids, row, strict=True):
                if hasattr(model.tokenizer, "decode"):
                    assert one == word or model.tokenizer.decode([one]).strip() == str(word).strip()
                else:
                    assert model.module.config.id2label[one] == str(word).strip()


def said(task: Task) -> list[object]:
    """The ids a model reads on both sides, where it reads ids, and those of the answers."""
    sides = [side.kwargs["input_ids"].tolist() for side in (task.clean, task.corrupt) if "input_ids" in side.kwargs]
    return [*sides, task.answer_ids, task.wrong_ids]


@pytest.mark.parametrize("name", planted.NAMES)
def test_probes_are_tasks(name):
    model = planted_model(name)
    for probe in planted.key(name).probes:
        task = probe_task(name, probe.name, model=model)
        clean, corrupt = (task.metric(model.run(side)["logits"], side) for side in (task.clean, task.corrupt))
        assert clean.item() > 0.9
        assert corrupt.item() < -0.9
    with pytest.raises(InterpError, match="expected a probe of"):
        probe_task(name, "nothing")


def test_prompts_longer_than_the_model_reads_are_refused():
    with pytest.raises(TaskError, match="at most 512 tokens"):
        tasks.needle(word_level("needle"), lengths=(600,), depths=(0.5,))


def digest(task: Task) -> str:
    total = hashlib.sha256()
    for row in task.rows:
        total.update(
            json.dumps([row.clean, row.corrupt, row.answers, row.wrong, dict(row.meta)], sort_keys=True).encode()
        )
        for picture in (row.image, row.corrupt_image):
            total.update(np.asarray(picture).tobytes() if picture is not None else b"")
    return total.hexdigest()[:16]


DIGESTS: dict[str, str] = {  # pinned; a change of generators, names or scenes is a change of everybody's data
    "ioi": "8f71b6fa824232b8",
    "greater_than": "2a6e843a9758eccf",
    "key_value": "75923669cab515cd",
    "needle": "d2713f61d0fa9e10",
    "copy_colors": "d6a7fb4c62de3017",
    "docstring": "70394cf6add9221e",
    "subject_verb": "326a6bd4f99ae57c",
    "shapes": "cf2d66ef1c12b5bf",
}


@pytest.mark.parametrize("name", [*TEXTS, "shapes"])
def test_seeds_give_the_same_data_everywhere(name):
    task = getattr(tasks, name)(None, n=6)
    assert digest(task) == DIGESTS[name]
    assert digest(getattr(tasks, name)(None, n=6, seed=1)) != DIGESTS[name]
    assert digest(getattr(tasks, name)(None, n=6, split="heldout")) != DIGESTS[name]


def test_held_out_names_and_templates_are_others():
    task = tasks.ioi(byte_pairs(), n=40)
    other = task.heldout
    assert other.recipe == task.recipe
    assert other.model is task.model
    for key in ("template", "io"):
        assert not {row[key] for row in task.meta} & {row[key] for row in other.meta}
    with pytest.raises(TaskError, match="not generated here"):
        replace(task, recipe=None).heldout  # noqa: B018


@pytest.mark.parametrize("name", [name for name in TEXTS if name != "greater_than"])
def test_held_out_keeps_the_options(name):
    options = {"n": 3, "seed": 5}
    task = getattr(tasks, name)(None, **options)
    assert task.heldout == getattr(tasks, name)(None, **options, split="heldout")


@pytest.mark.parametrize("corruption", ["flip", "third", "order", "names"])
def test_ioi_corruptions_change_what_they_say(corruption):
    task = tasks.ioi(None, n=20, corruption=corruption)
    for row in task.rows:
        io, s = row.meta["io"], row.meta["s"]
        count = {name: len(where_all(row.corrupt, name)) for name in (io, s)}
        wanted = {"flip": (2, 1), "third": (1, 1), "order": (1, 2), "names": (0, 0)}[corruption]
        assert (count[io], count[s]) == wanted
        assert len(where_all(row.clean, s)) == 2
        assert row.answers == (f" {io}",)


def where_all(text: str, word: str) -> list[str]:
    return [piece for piece in text.replace(".", " ").replace(",", " ").split() if piece == word]


def test_ioi_orders_take_turns():
    rows = tasks.ioi(None, n=4).meta
    assert [row["order"] for row in rows] == ["ABBA", "BABA", "ABBA", "BABA"]
    assert {row["order"] for row in tasks.ioi(None, n=4, order="BABA").meta} == {"BABA"}


def test_names_inside_names_are_told_apart():
    assert where("Anna and Ann. Ann sat", "Ann") == ("Ann", 2)
    assert where("Anna and Ann. Ann sat", "Ann", 2) == ("Ann", 3)


def test_greater_than_counts_every_later_year():
    task = tasks.greater_than(byte_pairs(), n=5)
    assert isinstance(task.metric, Probability)
    for row in task.rows:
        assert len(row.answers) + len(row.wrong) == 100
        assert min(row.answers) > row.meta["year"] >= max(row.wrong)


def digits(size: int) -> Stand:
    """A tokenizer of words that takes digits apart, `size` of them together."""
    inner = Tokenizer(models.BPE())
    pieces = pre_tokenizers.Split(Regex(rf"\d{{1,{size}}}| ?[^\s\d]+|\s+"), "isolated")
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [pieces, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    inner.decoder = decoders.ByteLevel()
    texts = [row.clean for row in tasks.greater_than(None, n=80).rows] * 2
    texts += [f"{n:03d}" for n in range(1000)] * 3
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=3000, initial_alphabet=alphabet, show_progress=False)
    inner.train_from_iterator(texts, trainer)
    return Stand(tiny_gpt2(inner.get_vocab_size()), PreTrainedTokenizerFast(tokenizer_object=inner))


def test_years_said_digit_by_digit_are_compared_where_they_differ_first():
    model = digits(1)
    task = tasks.greater_than(model, n=20)
    assert lengths(task.clean) == lengths(task.corrupt)
    for row in task.rows:
        tens = row.meta["year"][0]
        assert set(row.answers) == {d for d in "0123456789" if d > tens}
        assert set(row.wrong) == {d for d in "0123456789" if d < tens}
        assert min(len(row.answers), len(row.wrong)) > 0
        assert row.meta["digit"]
        assert row.clean.endswith(f" {row.meta['century']}")
    assert task.metric(model.run(task.clean)["logits"], task.clean).isfinite().all()
    assert tasks.greater_than(byte_pairs(), n=3).rows[0].meta.get("digit") is None
    with pytest.raises(TaskError, match="or into digits"):
        tasks.greater_than(digits(3), n=3)


def test_needles_are_words_of_one_token():
    inner = byte_pairs().tokenizer
    for whole in (False, True):
        task = tasks.needle(byte_pairs(), n=3, lengths=(64,), depths=(0.5,), whole=whole)
        for row in task.rows:
            for word in (row.meta["key"], *row.meta["answer"].split()):
                assert len(inner(f" {word}", add_special_tokens=False)["input_ids"]) == 1
        assert lengths(task.clean) == lengths(task.corrupt)


def test_a_task_in_a_chat_begins_the_answer(tmp_path):
    tokenizer = byte_pairs().tokenizer
    template = (
        "{% for m in messages %}<{{ m['role'] }}> Mary {{ m['content'] }} </s>{% endfor %}"
        "{% if add_generation_prompt %}<assistant> {% endif %}"
    )
    spoken = copy.deepcopy(tokenizer)
    spoken.chat_template = template
    model = interp.attach(tiny_gpt2(len(spoken)), spoken)
    plain = tasks.ioi(model, n=4)
    task = plain.in_chat("Mary, go on.")
    for i, row in enumerate(task.rows):
        text = task.clean.texts[i]
        assert text.endswith(row.clean)
        assert "Mary, go on." in text
        for name, place in row.positions.items():
            start, end = task.positions[name].rows[i]
            assert "".join(task.clean.tokens[i][start:end]).strip() == place[0]
            assert task.clean.length - end == plain.clean.length - plain.positions[name].rows[i][1]
    assert lengths(task.clean) == lengths(task.corrupt)
    assert task.heldout.chat == "Mary, go on."
    again = Task.load(task.save(tmp_path / "chat.jsonl"))
    assert again.chat == task.chat
    assert torch.equal(again.on(model).clean.kwargs["input_ids"], task.clean.kwargs["input_ids"])
    with pytest.raises(TaskError, match="ids or pictures"):
        tasks.shapes(tiny_vit(), n=2).in_chat()


def test_the_planted_decoder_does_its_tasks():
    model = planted_model("planted-decoder")
    for task in (tasks.key_value(model, n=12), tasks.key_value(model, n=12, corruption="pairs")):
        assert all(task.right())
        clean, corrupt = (task.metric(model.run(side)["logits"], side) for side in (task.clean, task.corrupt))
        assert clean.min() > 15
        assert corrupt.max() < -15
    words = planted_decoder.WORD_IDS
    task = tasks.induction(model, n=12, length=20, tokens=words)
    clean, corrupt = (task.metric(model.run(side)["logits"], side) for side in (task.clean, task.corrupt))
    assert clean.min() > 15
    assert corrupt.max() < -15


def test_places_in_prompts_of_ids_are_shifted_by_the_padding():
    model = planted_model("planted-decoder")
    short, long = (tasks.induction(model, n=1, length=length) for length in (6, 12))
    both = replace(short, rows=short.rows + long.rows).on(model)
    ids = both.clean.kwargs["input_ids"]
    assert not both.clean.valid[0, 0]
    for name in ("first A", "first B", "second A"):
        for i, (start, end) in enumerate(both.positions[name].rows):
            first, last = both.rows[i].positions[name]
            assert ids[i, start:end].tolist() == list(both.rows[i].clean[first:last])
    assert ids[0, both.positions["first B"].rows[0][0]] == both.answer_ids[0][0]


def test_filter_keeps_what_is_right_and_says_how_many(capsys):
    model = planted_model("planted-decoder")
    task = tasks.key_value(model, n=6)
    wrong = replace(task.rows[2], answers=task.rows[2].wrong, wrong=task.rows[2].answers)
    mixed = replace(task, rows=(*task.rows[:2], wrong, *task.rows[3:]))
    kept = mixed.filter()
    assert kept.rows == (*task.rows[:2], *task.rows[3:])
    assert "5 of 6" in capsys.readouterr().out
    with pytest.raises(TaskError, match="none of the 1"):
        mixed.take([2]).filter()


def test_several_tokens_are_teacher_forced():
    model = word_level("needle")
    task = tasks.needle(model, lengths=(64,), depths=(0.5,), n=3, whole=True)
    assert isinstance(task.metric, LogProb)
    logits = model.run(task.clean)["logits"]
    log_p = logits.log_softmax(-1)
    for i, ids in enumerate(task.answer_ids):
        assert len(ids) == 2
        assert task.clean.kwargs["input_ids"][i, -2:].tolist() == list(ids)
        wanted = log_p[i, -3, ids[0]] + log_p[i, -2, ids[1]]
        assert task.metric(logits, task.clean)[i].item() == pytest.approx(wanted.item(), abs=1e-5)
    said = [(log_p[i, -3:-1].argmax(-1) == torch.tensor(ids)).all().item() for i, ids in enumerate(task.answer_ids)]
    assert task.right() == tuple(said)


def test_needles_stand_where_they_were_put():
    task = tasks.needle(word_level("needle"), lengths=(128, 200), depths=(0.0, 0.5, 1.0))
    assert lengths(task.clean) == [129, 129, 129, 201, 201, 201]
    starts = [span[0] for span in task.take(range(3)).on(task.model).positions["needle"].rows]
    assert starts[0] == 1
    assert 50 < starts[1] < 75
    assert starts[2] > 110


def test_needles_in_a_text_file(tmp_path):
    book = tmp_path / "book.txt"
    book.write_text("The war lasted long. John gave a drink to Mary. Nothing else happened that day. " * 20)
    one = Needle("The boat is red and gold.", "What color is the boat?", "red and gold")
    task = tasks.needle(byte_pairs(), lengths=(120,), depths=(0.0, 1.0), haystack=book, needles=(one,))
    assert task.rows[0].clean.startswith(one.needle)
    assert f"{one.needle} \nBased" in task.rows[1].clean
    assert "gold and red" in task.rows[0].corrupt
    with pytest.raises(TaskError, match="longer than the haystack"):
        tasks.needle(byte_pairs(), lengths=(20,), haystack=book, needles=(one,))
    with pytest.raises(TaskError, match="longer than the haystack"):
        tasks.needle(None, lengths=(20,))


def test_pictures_differ_in_the_thing_asked_about():
    task = tasks.shapes(None, n=8, kind="adversarial")
    for row in task.rows:
        there = row.meta["about"] in row.meta["objects"]
        assert there == (row.answers == (" yes",))
        assert (row.meta["about"] in row.meta["corrupt_objects"]) != there
        assert row.image != row.corrupt_image
        changed = np.argwhere((np.asarray(row.image) != np.asarray(row.corrupt_image)).any(-1))
        assert 9 < len(changed) < 16 * 16


def test_captions_are_forced_and_list_their_objects():
    model = tiny_lvlm()
    task = tasks.shapes(model, n=3, style="caption")
    assert isinstance(task.metric, LogProb)
    assert task.metric(model.run(task.clean)["logits"], task.clean).shape == (3,)
    for row in task.rows:
        assert all(shape in row.answers[0] for shape in row.meta["objects"])
        assert len(row.meta["boxes"]) == len(row.meta["objects"])


def test_saved_tasks_come_back_equal(tmp_path):
    for name in (*TEXTS, "shapes"):
        task = getattr(tasks, name)(None, n=3)
        again = Task.load(task.save(tmp_path / f"{name}.jsonl"))
        assert again.rows == load_equal(task).rows
        assert again.heldout == task.heldout or name == "needle"
    ids = tasks.induction(planted_model("planted-decoder"), n=2)
    assert Task.load(ids.save(tmp_path / "ids.jsonl"), planted_model("planted-decoder")).rows == ids.rows


def load_equal(task: Task) -> Task:
    """Tuples in meta data become lists on the way through JSON."""
    return replace(task, rows=tuple(replace(row, meta=json.loads(json.dumps(dict(row.meta)))) for row in task.rows))


def test_broken_files_name_the_line(tmp_path):
    path = tasks.ioi(None, n=3).save(tmp_path / "ioi.jsonl")
    lines = path.read_text().splitlines()
    for broken, says in (
        ([lines[0], lines[1], lines[2][:-5]], "line 3: not JSON"),
        ([lines[0], '{"clean": "a"}'], "line 2: missing corrupt, answers"),
        ([lines[1]], "line 1: expected a head line"),
        ([lines[0], "[1]"], "line 2: expected an object"),
    ):
        path.write_text("\n".join(broken))
        with pytest.raises(TaskError, match=says):
            Task.load(path)


def test_a_task_file_cannot_read_pictures_elsewhere(tmp_path):
    path = tasks.shapes(None, n=1).save(tmp_path / "in" / "shapes.jsonl")
    Image.new("RGB", (4, 4)).save(tmp_path / "outside.png")
    path.write_text(path.read_text().replace("shapes.images/0.image.png", "../outside.png"))
    with pytest.raises(TaskError, match="outside"):
        Task.load(path)


def test_a_table_becomes_a_task():
    frame = pd.DataFrame(
        {
            "clean": ["Mary and John left. John saw"],
            "corrupt": ["Mary and John left. Mary saw"],
            "answer": [" Mary"],
            "wrong": [" John"],
            "source": ["me"],
        }
    )
    task = Task.from_frame(frame, byte_pairs())
    assert isinstance(task.metric, LogitDifference)
    assert task.meta == ({"source": "me"},)
    assert Task.from_frame(task.to_frame()).rows == task.rows
    assert isinstance(Task.from_frame(frame.drop(columns="wrong"), byte_pairs()).metric, LogProb)
    with pytest.raises(TaskError, match="expected columns clean, corrupt, answer"):
        Task.from_frame(frame.drop(columns="answer"))
    with pytest.raises(TaskError, match="column 'corrupt' of row 0"):
        Task.from_frame(frame.assign(corrupt=[None]))


def test_what_does_not_line_up_is_refused():
    model = byte_pairs()
    row = Row("Mary and John left. John saw", "Mary left. John saw", (" Mary",), (" John",))
    with pytest.raises(TaskError, match="equal length, got"):
        Task("mine", (row,)).on(model)
    with pytest.raises(TaskError, match="one token for the answer"):
        Task("mine", (replace(row, corrupt=row.clean, answers=(" Zoltan",)),)).on(model)
    with pytest.raises(TaskError, match="no wrong answer"):
        Task("mine", (replace(row, wrong=()),))
    with pytest.raises(TaskError, match="at least one row"):
        Task("mine", ())
    with pytest.raises(TaskError, match="one token for the name"):
        tasks.ioi(model, n=2, names=["Zoltan", *interp.prompts.names.NAMES["train"][:20]])
    with pytest.raises(TaskError, match="mode 'L'"):
        Task("mine", (replace(row, image=Image.new("L", (8, 8))),))


def test_without_a_model_there_are_texts_and_no_metric():
    task = tasks.ioi(None, n=2)
    assert task.clean == [row.clean for row in task.rows]
    with pytest.raises(TaskError, match="on no model"):
        task.metric  # noqa: B018


def test_words_are_checked_with_the_blank_before_them():
    words = Vocabulary(byte_pairs())
    assert words.is_single(" Mary")
    assert not words.is_single(" Zoltan")
    known = Vocabulary(word_level("ioi"))
    assert known.is_single(" Mary")
    assert not known.is_single(" zoltan")
