"""Text, chats, ids, pictures or a processor's output, made into the frozen `Inputs` of one model.

Idea: whatever comes in becomes rows of ids without padding; the answer to be scored is appended to them; then they are
padded once, so that prompt ids never change and every start column is known. Nothing is inserted silently: special
tokens are the tokenizer's, image tokens the processor's, and a count that does not match is an error.

Padding. A model that generates is padded on the left, so that the last column is every row's last token and generation
can go on from it; everything else (encoders, encoder-decoders, models without position ids) is padded on the right.
Where left padding would shift positions the model gets explicit `position_ids`; models that number positions by the
mask themselves, or by picture (Qwen-VL), are left to it. `padding=` overrides the side.

Continuation. Answers are tokenised as they read after an ordinary word, on their own, so that the same answer has the
same ids after every prompt. Encoder-decoders get them in the decoder, after its start token; Whisper's after the tokens
for language, task and no times (`speech.py`).

Cost: no forward pass. Limits: video processors need torchvision; audio goes to models that only listen, such as
Whisper and Wav2Vec2; a text or a clip is never cut.
"""

from __future__ import annotations

import inspect
import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from numbers import Integral
from typing import Any, Literal

import torch
from torch import Tensor, nn

from interp.hooks.errors import InputsError
from interp.hooks.inputs.arguments import vocabulary
from interp.hooks.inputs.inputs import Inputs
from interp.hooks.inputs.sound import SOUND, extractor_of
from interp.hooks.inputs.token_text import Decoder
from interp.hooks.pictures.grids import Fit
from interp.hooks.pictures.record import VisionLanguage, family_of, unknown
from interp.preparing.chats import Chat, is_chat, paint, render
from interp.preparing.pictures import as_rows, count_check, sizes_of
from interp.preparing.rows import Rows, from_batch, from_ids, from_texts, tokenise_answer
from interp.preparing.sound import clips, heard, window_of
from interp.preparing.speech import prefixes

Side = Literal["left", "right"]
BY_MASK = ("bloom", "mpt", "opt", "falcon")
PLAIN = VisionLanguage((), images=unknown)
"""A family that has no record."""
_warned: dict[str, weakref.WeakSet[nn.Module]] = {}


def prepare(
    module: nn.Module,
    processor: Any,
    data: Any = None,
    *,
    images: Any = None,
    videos: Any = None,
    audio: Any = None,
    chat: bool | Mapping[str, Any] | None = None,
    continuation: Any = None,
    padding: Side | None = None,
    language: str | Sequence[str] | None = None,
    task: str | None = None,
    describe: Callable[[Mapping[str, Any]], Inputs] | None = None,
) -> Inputs:
    """Inputs for a module from texts, messages, ids or a processor's output, with pictures and an answer if given.

    `audio` is a clip or a list of clips: a path to a WAV file, samples between -1 and 1, or a dict of array and
    sampling_rate. `language` and `task` are what Whisper's decoder reads before the text. `describe` is who says what
    the positions of a call are, where that is more than its arguments say.
    """
    if padding not in (None, "left", "right"):
        raise InputsError(f"padding is the side, 'left' or 'right', got {padding!r}")
    call = Call(module, processor, padding, language=language, task=task)
    call.describe = describe or call.describe
    call.check_spoken(data, audio)
    if isinstance(data, Inputs):
        _nothing_else(images=images, videos=videos, audio=audio, chat=chat or None)
        if continuation is None:
            return data
        data = call.unnumbered(data.kwargs)
    if isinstance(data, Mapping) and not is_chat(data):
        _nothing_else(images=images, videos=videos, audio=audio, chat=chat or None)
        return call.finish_batch(data, continuation)
    if audio is not None:
        _nothing_else(images=images, videos=videos, chat=chat or None)
        if data is not None and continuation is not None:
            raise InputsError("with audio= a text is what the decoder writes: give it once, as continuation=")
        return call.listen(audio, data if continuation is None else continuation)
    return call.read(data, images, videos, chat, continuation)


def _nothing_else(**given: Any) -> None:
    extra = [name for name, value in given.items() if value is not None]
    if extra:
        raise InputsError(f"{', '.join(extra)} cannot be added to arguments that are already made; give texts instead")


class Call:
    """One preparation: the module, what its processor consists of, and the side to pad on."""

    def __init__(
        self, module: nn.Module, processor: Any, padding: Side | None, *, language: Any = None, task: str | None = None
    ) -> None:
        self.module, self.processor, self.language, self.task = module, processor, language, task
        self.config = getattr(module, "config", None)
        self.family = family_of(self.config) or PLAIN
        self.tokenizer = tokenizer_of(processor)
        self.looks = getattr(processor, "image_processor", None if _tokenizes(processor) else processor)
        self.two_stacks = bool(getattr(self.config, "is_encoder_decoder", False))
        self.side: Side = padding or ("left" if self._goes_left() else "right")
        self.describe: Callable[[Mapping[str, Any]], Inputs] = partial(
            Inputs.of, config=self.config, tokenizer=self.tokenizer, extractor=extractor_of(processor)
        )

    def _goes_left(self) -> bool:
        generates = getattr(self.module, "can_generate", None)
        if self.two_stacks or not callable(generates) or not generates():
            return False
        by_mask = self.family.by_mask or getattr(self.config, "model_type", "") in BY_MASK
        return by_mask or self._takes("position_ids")

    def _takes(self, name: str) -> bool:
        return name in inspect.signature(self.module.forward).parameters

    def warn(self, kind: str, message: str) -> None:
        """Say something once per model."""
        said = _warned.setdefault(kind, weakref.WeakSet())
        if self.module not in said:
            said.add(self.module)
            warnings.warn(message, UserWarning, stacklevel=5)

    def read(self, data: Any, images: Any, videos: Any, chat: Any, continuation: Any) -> Inputs:
        """Texts, chats or ids, alone or with pictures; or pictures alone."""
        if data is None:
            return self.look(images)
        if _is_ids(data):
            _nothing_else(images=images, videos=videos, chat=chat or None)
            return self.finish(from_ids(data, self.pad_id), continuation)
        chats = render(data, images, chat, self.processor, self.tokenizer)
        texts = [chat.text for chat in chats] if chats else _texts(data)
        if self.tokenizer is None:
            raise InputsError("texts need a tokenizer: attach the model with its processor, or give ids")
        if not chats and chat is None and _template(self.processor, self.tokenizer):
            self.warn(
                "raw",
                "this tokenizer has a chat template, and the texts are used as they are; "
                "chat=True wraps them as user messages, chat=False says that raw text is meant",
            )
        pictures = [p for chat in chats for p in chat.images] or images
        if pictures is not images and images is not None:
            raise InputsError("pictures are in the messages and in images=: give them once")
        if pictures is None and videos is None:
            token = _placeholder(self.processor, self.family)
            counts = [text.count(token) if token else 0 for text in texts]
            count_check(counts, [[] for _ in texts], token)
            rows = from_texts(self.tokenizer, texts, special=not chats)
            return self.finish(rows, continuation, chats=chats)
        return self.see(texts, pictures or None, videos, chats, continuation)

    def see(self, texts: list[str], images: Any, videos: Any, chats: list[Chat], continuation: Any) -> Inputs:
        """Texts with pictures, through the processor."""
        if self.looks is None or self.processor is self.tokenizer:
            raise InputsError("pictures need the model's processor (AutoProcessor), not its tokenizer alone")
        token = _placeholder(self.processor, self.family)
        counts = [text.count(token) if token else 1 for text in texts]
        _count_videos(texts, videos, self.processor)
        if self.family.always and not any(counts):
            texts, counts = [token + text for text in texts], [1] * len(texts)
        pictures = as_rows(images, counts if token or self.family.implicit else None)
        if token or self.family.implicit:
            count_check(counts, pictures, token)
        given = pictures if self.family.nested else [picture for row in pictures for picture in row]
        extra = {"videos": videos} if videos is not None else {}
        extra |= {"add_special_tokens": False} if chats else {}
        batch = self.processor(
            text=texts, images=given or None, padding=True, padding_side=self.side, return_tensors="pt", **extra
        )
        rows = from_batch(batch)
        sizes = sizes_of(pictures)
        return self.finish(rows, continuation, chats=chats, sizes=sizes)

    def look(self, images: Any) -> Inputs:
        """Pictures alone."""
        if images is None:
            raise InputsError("no input was given: give texts, messages, ids, a processor's output or images=")
        if self.looks is None:
            raise InputsError("pictures need an image processor: attach the model with its processor, or give pixels")
        pictures = as_rows(images, None)[0]
        batch = self.looks(images=pictures, return_tensors="pt")
        return self._with_pictures(self._inputs(dict(batch)), sizes_of([pictures]))

    def check_spoken(self, data: Any, audio: Any) -> None:
        """Language and task go with sound whose decoder has not started."""
        spoken = audio is not None or (
            isinstance(data, Mapping) and "input_features" in data and "decoder_input_ids" not in data
        )
        if (self.language is not None or self.task is not None) and not spoken:
            raise InputsError("language= and task= go with audio=: leave them out.")

    def listen(self, audio: Any, text: Any) -> Inputs:
        """Sound at the extractor's rate; the text, if any, goes to the decoder."""
        extractor = extractor_of(self.processor)
        if extractor is None:
            raise InputsError("audio needs the model's processor, whose feature extractor says the sampling rate")
        rows = clips(audio, extractor.sampling_rate, window_of(extractor))
        batch = heard(extractor, rows, masked=self._takes("attention_mask"))
        if self.two_stacks:
            return self._two_stacks(batch, len(rows), text)
        if text is not None or self.language is not None or self.task is not None:
            raise InputsError(
                f"{type(self.module).__name__} has no decoder that a text, language= or task= could go to: give the"
                " audio alone."
            )
        return self._inputs(batch)

    def finish_batch(self, data: Mapping[str, Any], continuation: Any) -> Inputs:
        """A processor's output: as it is, or with an answer appended."""
        if continuation is None and not (self.two_stacks and "decoder_input_ids" not in data):
            inputs = self._inputs(dict(data))
            shifted = "position_ids" not in data and self._needs_positions(data) and self._padding_position() is None
            if shifted and not inputs.valid[:, 0].all():
                self.warn(
                    "positions",
                    "rows are padded on the left and have no position_ids: this model numbers "
                    "columns, padding included; pass position_ids or let prepare do the padding",
                )
            return inputs
        if self.two_stacks:
            batch = {name: value for name, value in data.items() if value is not None}
            return self._two_stacks(batch, len(next(iter(batch.values()))), continuation)
        return self.finish(from_batch(data), continuation)

    def finish(self, rows: Rows, continuation: Any, *, chats: Sequence[Chat] = (), sizes: Any = None) -> Inputs:
        """Append the answer, pad, number positions, describe."""
        rows.check()
        self._check_bos(rows)
        if self.two_stacks:
            return self._two_stacks(rows.padded(self.side, self.pad_id), len(rows.ids), continuation, rows)
        answers = self._answers(continuation, len(rows.ids))
        starts = None
        if answers is not None:
            fills = self.family.fills
            rows, starts = rows.appended(answers, self._decoder(), fills), [len(ids) for ids in rows.ids]
        call = self._unmasked(rows.padded(self.side, self.pad_id))
        if self._needs_positions(call):
            call["position_ids"] = self._numbers(call["attention_mask"])
        inputs = self._inputs(call)
        inputs = rows.described(inputs, self.side, starts)
        return self._with_pictures(paint(inputs, chats, self.warn), sizes)

    def _unmasked(self, call: dict[str, Any]) -> dict[str, Any]:
        """The call without its mask, for a forward that takes none: its rows have to be of one length."""
        takes = inspect.signature(self.module.forward).parameters
        if "attention_mask" in takes or any(one.kind is one.VAR_KEYWORD for one in takes.values()):
            return call
        lengths = call["attention_mask"].sum(-1).tolist()
        if len(set(lengths)) > 1:
            raise InputsError(
                f"rows of {', '.join(map(str, sorted(set(lengths))))} tokens would need padding, and"
                f" {type(self.module).__name__}.forward takes no attention_mask: give rows of one length."
            )
        return {name: value for name, value in call.items() if name != "attention_mask"}

    def _needs_positions(self, call: Mapping[str, Any]) -> bool:
        """Whether padding before a token would shift the positions the model makes up."""
        mask = call.get("attention_mask")
        pictured = any(name in call for name in ("image_grid_thw", "video_grid_thw"))
        shifted = isinstance(mask, Tensor) and bool((mask.cumsum(-1)[:, :1] == 0).any())
        return shifted and self._takes("position_ids") and not pictured

    def _numbers(self, mask: Tensor) -> Tensor:
        """Positions that count real tokens only; padding gets some position the model has."""
        after = self._padding_position()
        first = self.family.first_position if after is None else after + 1
        return (mask.long().cumsum(-1) - 1 + first).clamp(min=0)

    def _padding_position(self) -> int | None:
        """RoBERTa and its kin keep a row of their table of positions for padding, and number tokens from the next."""
        tables = (child for name, child in self.module.named_modules() if name.endswith("position_embeddings"))
        return next((one.padding_idx for one in tables if isinstance(one, nn.Embedding)), None)

    def unnumbered(self, call: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments made here, without the positions that were added for their padding."""
        numbers, mask = call.get("position_ids"), call.get("attention_mask")
        own = numbers is not None and mask is not None and torch.equal(numbers, self._numbers(mask))
        return {name: value for name, value in call.items() if not (own and name == "position_ids")}

    def _answers(self, continuation: Any, batch: int) -> list[list[int]] | None:
        if continuation is None:
            return None
        return tokenise_answer(self.tokenizer, continuation, batch)

    def _decoder(self) -> Decoder | None:
        return None if self.tokenizer is None else Decoder(self.tokenizer)

    def _two_stacks(self, call: dict[str, Any], batch: int, answer: Any, rows: Rows | None = None) -> Inputs:
        """The encoder's arguments with a decoder that starts, and goes on with the answer."""
        start = _start_id(self.module, self.config)
        answers = self._answers(answer, batch) or [[]] * batch
        before = self._before(start, batch) if "input_features" in call else [[start]] * batch
        decoder = Rows([[*first, *ids] for first, ids in zip(before, answers, strict=True)], None, None, {}, {})
        decoder.check()
        padded = decoder.padded("right", self.pad_id)
        call["decoder_input_ids"] = padded["input_ids"]
        if not padded["attention_mask"].all():
            call["decoder_attention_mask"] = padded["attention_mask"]
        inputs = self._inputs(call)
        if rows is not None:
            towers = {**inputs.towers, "encoder": rows.described(inputs.tower("encoder"), self.side, None)}
            inputs = replace(inputs, towers=towers)
        return inputs if answer is None else replace(inputs, continuation=tuple(map(len, before)))

    def _before(self, start: int, batch: int) -> list[list[int]]:
        return prefixes(
            self.module, self.tokenizer, start, batch, language=self.language, task=self.task, warn=self.warn
        )

    def _inputs(self, call: dict[str, Any]) -> Inputs:
        device, dtype = _home(self.module)
        moved = {name: _at(value, name, device, dtype) for name, value in call.items()}
        return self.describe(moved)

    def _with_pictures(self, inputs: Inputs, sizes: Any) -> Inputs:
        """Say how large the pictures were and how they were fitted, so that boxes can be drawn."""
        if sizes is None:
            return inputs
        fit = Fit.of(self.looks)
        towers = dict(inputs.towers)
        if isinstance(towers.get("vision"), Inputs):
            towers["vision"] = _sized(towers["vision"], sizes, fit)
        return replace(_sized(inputs, sizes, fit), towers=towers)

    def _check_bos(self, rows: Rows) -> None:
        bos = getattr(self.tokenizer, "bos_token_id", None)
        doubled = [i for i, ids in enumerate(rows.ids) if bos is not None and _doubled(ids, bos, self.config)]
        if doubled:
            self.warn(
                "bos",
                f"row {doubled[0]} starts with two BOS tokens ({bos}): the text has one and the tokenizer "
                "adds one; nothing was removed",
            )

    @property
    def pad_id(self) -> int:
        """An id to fill up with; it is masked, so where there is no padding token any will do."""
        text = _text_config(self.config)
        for holder in (self.tokenizer, self.config, text):
            for name in ("pad_token_id", "eos_token_id"):
                value = getattr(holder, name, None)
                if isinstance(value, int) and 0 <= value < (vocabulary(self.config) or value + 1):
                    return value
        return 0


def _sized(inputs: Inputs, sizes: Sequence[tuple[int, int]], fit: Fit) -> Inputs:
    return replace(inputs, roles=replace(inputs.roles, sizes=tuple(sizes), fit=fit))


def _text_config(config: Any, **which: bool) -> Any:
    return config.get_text_config(**which) if callable(getattr(config, "get_text_config", None)) else None


def tokenizer_of(processor: Any) -> Any:
    """The tokenizer in or as a processor; None where it has none."""
    return getattr(processor, "tokenizer", processor if _tokenizes(processor) else None)


def _tokenizes(processor: Any) -> bool:
    return hasattr(processor, "convert_ids_to_tokens")


def _template(processor: Any, tokenizer: Any) -> bool:
    return bool(getattr(processor, "chat_template", None) or getattr(tokenizer, "chat_template", None))


def _is_ids(data: Any) -> bool:
    if isinstance(data, Tensor) or type(data).__module__ == "numpy":
        return True
    first = data[0] if isinstance(data, Sequence) and not isinstance(data, str) and len(data) else None
    return isinstance(first, Integral) or (not isinstance(first, (str, Mapping)) and _is_ids_row(first))


def _is_ids_row(row: Any) -> bool:
    if isinstance(row, Tensor) or type(row).__module__ == "numpy":
        return True
    return isinstance(row, Sequence) and (not row or isinstance(row[0], Integral))


def _texts(data: Any) -> list[str]:
    texts = [data] if isinstance(data, str) else data
    if not isinstance(texts, Sequence) or not all(isinstance(text, str) for text in texts):
        raise InputsError(
            f"expected texts, messages, ids or a processor's output, got {type(data).__name__}: {data!r:.80}"
        )
    if not texts:
        raise InputsError("an empty batch: give at least one text")
    for index, text in enumerate(texts):
        if not text:
            raise InputsError(
                f"text {index} is empty; a model needs at least one token to read (give ids for BOS alone)"
            )
    return list(texts)


def _placeholder(processor: Any, family: VisionLanguage) -> str:
    """The text that marks one picture; empty where the processor itself puts pictures in front."""
    if family.in_front:
        return ""
    token = getattr(processor, "image_token", None)
    return str(getattr(token, "content", token) or "")


def _count_videos(texts: Sequence[str], videos: Any, processor: Any) -> None:
    token = str(getattr(processor, "video_token", None) or "")
    places = sum(text.count(token) for text in texts) if token else 0
    given = 0 if videos is None else len(videos) if isinstance(videos, (list, tuple)) else 1
    if token and places != given:
        raise InputsError(f"the texts have {places} {token!r} places, but {given} video(s) were given")


def _start_id(module: nn.Module, config: Any) -> int:
    text = _text_config(config, decoder=True)
    for holder in (getattr(module, "generation_config", None), config, text):
        for name in ("decoder_start_token_id", "bos_token_id", "pad_token_id"):
            value = getattr(holder, name, None)
            if isinstance(value, int):
                return value
    raise InputsError("this encoder-decoder names no decoder_start_token_id: pass decoder_input_ids yourself")


def _doubled(ids: Sequence[int], bos: int, config: Any) -> bool:
    image = {getattr(config, name, None) for name in ("image_token_id", "image_token_index")}
    words = [index for index in ids if index not in image][:2]
    return words == [bos, bos]


def _home(module: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Where the module reads its inputs and in which precision."""
    device = next((p.device for p in module.parameters() if p.device.type != "meta"), torch.device("cpu"))
    dtype = next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)
    return device, dtype


def _at(value: Any, name: str, device: torch.device, dtype: torch.dtype) -> Any:
    if not isinstance(value, Tensor):
        return value
    half = dtype in (torch.float16, torch.bfloat16) and name.startswith(("pixel_values", *SOUND))
    return value.to(device, dtype) if half and value.is_floating_point() else value.to(device)
