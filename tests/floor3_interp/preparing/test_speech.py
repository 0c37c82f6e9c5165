"""What Whisper's decoder reads before the text: what its own tokenizer writes there, and what a user asks for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as hf
from spoken import RATE, SPOKEN, tone, wav2vec, whisper

import interp
from interp.hooks.errors import InputsError
from interp.preparing import prepare as module_under_test
from interp.preparing.speech import prefixes

START, EN, DE, TRANSLATE, TRANSCRIBE, TIMELESS = SPOKEN


@pytest.fixture(autouse=True)
def _forget_what_was_said() -> None:
    module_under_test._warned.clear()


def read(x: Any, processor: Any) -> list[list[str]]:
    return [processor.tokenizer.convert_ids_to_tokens(row) for row in x.ids.tolist()]


@pytest.mark.parametrize(
    ("how", "wanted"),
    [
        ({"language": "en"}, [START, EN, TRANSCRIBE, TIMELESS]),
        ({"language": "German", "task": "translate"}, [START, DE, TRANSLATE, TIMELESS]),
        ({"language": "<|de|>"}, [START, DE, TRANSCRIBE, TIMELESS]),
    ],
)
def test_language_and_task_stand_before_the_text(how: dict[str, Any], wanted: list[str]) -> None:
    model, processor = whisper()
    m = interp.attach(model, processor)
    x = m.prepare(audio=[tone(0.3), tone(0.5)], continuation=[" yes", " no or"], **how)
    assert [row[:4] for row in read(x, processor)] == [wanted] * 2
    assert x.continuation == (4, 4)
    assert x.mask("prompt").sum(1).tolist() == [4, 4]
    assert x.roles.where("text")[0].nonzero().flatten().tolist()[0] == 4
    assert m.run(x)["logits"].shape[:2] == x.valid.shape
    bare = m.prepare(audio=[tone(0.3), tone(0.5)], **how)
    assert read(bare, processor) == [wanted] * 2


def test_it_is_what_the_tokenizer_of_whisper_writes() -> None:
    """The real class, on the vocabulary of the tests: its prefix, whatever it was told."""
    _, processor = whisper()
    model = whisper()[0]
    vocabulary = dict(processor.tokenizer.get_vocab())
    for language, task in (("en", "transcribe"), ("german", "translate")):
        own = hf.WhisperTokenizer(vocab=vocabulary, merges=[], language=language, task=task)
        for token in SPOKEN:
            own.add_special_tokens({"additional_special_tokens": [token]}, replace_extra_special_tokens=False)
        start = own.convert_tokens_to_ids(START)
        silent = lambda kind, message: pytest.fail(message)  # noqa: E731
        [found] = prefixes(model, own, start, 1, language=None, task=None, warn=silent)
        assert own.convert_ids_to_tokens(found) == [
            START, {"en": EN, "german": DE}[language], f"<|{task}|>", TIMELESS
        ]  # fmt: skip
        [other] = prefixes(model, own, start, 1, language="en", task="transcribe", warn=silent)
        assert own.convert_ids_to_tokens(other) == [START, EN, TRANSCRIBE, TIMELESS]


def test_rows_may_differ_in_language() -> None:
    model, processor = whisper()
    x = interp.attach(model, processor).prepare(audio=[tone(0.3)] * 2, language=["en", "de"])
    assert [row[1] for row in read(x, processor)] == [EN, DE]


def test_without_a_language_it_is_said() -> None:
    model, processor = whisper()
    m = interp.attach(model, processor)
    with pytest.warns(UserWarning, match="no language is given"):
        x = m.prepare(audio=tone(0.3))
    assert read(x, processor) == [[START, TIMELESS]]


def test_the_generation_config_is_heard_and_overruled() -> None:
    model, processor = whisper()
    model.generation_config.language = "de"
    try:
        m = interp.attach(model, processor)
        assert read(m.prepare(audio=tone(0.3)), processor) == [[START, DE, TRANSCRIBE, TIMELESS]]
        assert read(m.prepare(audio=tone(0.3), language="en"), processor)[0][1] == EN
        model.generation_config.is_multilingual = False
        assert read(m.prepare(audio=tone(0.3)), processor) == [[START, TIMELESS]]
        with pytest.raises(InputsError, match="English alone"):
            m.prepare(audio=tone(0.3), language="en")
    finally:
        del model.generation_config.language
        model.generation_config.__dict__.pop("is_multilingual", None)


def test_a_processors_batch_gets_the_same_start() -> None:
    model, processor = whisper()
    m = interp.attach(model, processor)
    batch = processor(tone(0.3), sampling_rate=RATE, return_tensors="pt")
    x = m.prepare(batch, language="en", continuation=" yes")
    assert read(x, processor)[0][:4] == [START, EN, TRANSCRIBE, TIMELESS]
    assert torch.equal(x.kwargs["input_features"], batch["input_features"])
    assert x.tower("encoder").roles.seconds == pytest.approx(0.02)


def test_generating_goes_on_after_it() -> None:
    model, processor = whisper()
    m = interp.attach(model, processor)
    x = m.prepare(audio=tone(0.3), language="en")
    said = m.generate(x, max_new_tokens=3)
    first = m.run(x)["logits"][0, -1]
    assert int(said.ids[0, 0]) == int(first.argmax())


def test_what_has_no_meaning_is_refused() -> None:
    model, processor = whisper()
    m = interp.attach(model, processor)
    for how, says in (
        ({"language": "klingon"}, "no language 'klingon'.*has en, de"),
        ({"language": "fr"}, "no language 'fr'"),
        ({"language": "en", "task": "sing"}, "task is one of transcribe, translate"),
        ({"language": ["en"]}, "1 languages for a batch of 2"),
    ):
        with pytest.raises(InputsError, match=says):
            m.prepare(audio=[tone(0.3)] * 2, **how)
    with pytest.raises(InputsError, match="give it once, as continuation="):
        m.prepare(" yes", audio=tone(0.3), continuation=" no", language="en")
    with pytest.raises(InputsError, match="language= and task= go with audio="):
        m.prepare([3, 4], language="en")
    with pytest.raises(InputsError, match="no decoder"):
        interp.attach(*wav2vec()).prepare(audio=tone(0.3), language="en")
