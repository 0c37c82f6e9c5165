"""Chat messages through the model's own template, and which tokens are whose.

Idea: the template is rendered a second time with every message replaced by a mark, which shows what is template and
what is message; the pieces are then looked for, in order, in the text of the tokens, where image placeholders have
become many tokens. Limits: a template that rewrites messages (drops thoughts, changes case) leaves its tokens `text`,
and says so once.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from interp.hooks.errors import InputsError
from interp.hooks.inputs.inputs import Inputs
from interp.hooks.inputs.labels import CODE

SPEAKERS = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
Message = Mapping[str, Any]


@dataclass(frozen=True)
class Chat:
    """A rendered conversation: its text, its pieces as (speaker or "template", literal), its pictures."""

    text: str
    pieces: tuple[tuple[str, str], ...] = ()
    images: tuple[Any, ...] = ()
    gaps: tuple[str, ...] = field(default=())


def is_chat(data: Any) -> bool:
    """One message, messages, or a batch of conversations."""
    if isinstance(data, Mapping):
        return "role" in data
    return isinstance(data, Sequence) and not isinstance(data, str) and len(data) > 0 and is_chat(data[0])


def render(data: Any, images: Any, chat: Any, processor: Any, tokenizer: Any) -> list[Chat]:
    """The conversations in a model's own format; empty where the data is text to be used as it is."""
    if not is_chat(data) and not chat:
        return []
    if is_chat(data) and chat is False:
        raise InputsError("messages need the chat template: leave chat out, or give texts")
    holder = next((h for h in (processor, tokenizer) if getattr(h, "chat_template", None)), None)
    if holder is None:
        raise InputsError("this model's processor has no chat template: give texts, or set tokenizer.chat_template")
    settings = dict(chat) if isinstance(chat, Mapping) else {}
    gaps = tuple(str(getattr(t, "content", t)) for t in _gap_tokens(processor) if t)
    return [_render(messages, holder, settings, gaps) for messages in _conversations(data, images)]


def _gap_tokens(processor: Any) -> list[Any]:
    return [getattr(processor, name, None) for name in ("image_token", "video_token", "audio_token")]


def _conversations(data: Any, images: Any) -> list[list[Message]]:
    if is_chat(data):
        first = [data] if isinstance(data, Mapping) else data
        batch = [first] if isinstance(first[0], Mapping) else first
        return [list(messages) for messages in batch]
    texts = [data] if isinstance(data, str) else list(data)
    counts = _pictures_per_text(texts, images)
    return [[_user(text, count)] for text, count in zip(texts, counts, strict=True)]


def _pictures_per_text(texts: Sequence[str], images: Any) -> list[int]:
    if images is None:
        return [0] * len(texts)
    given = list(images) if isinstance(images, (list, tuple)) else [images]
    if any(isinstance(row, (list, tuple)) for row in given):
        return [len(row) if isinstance(row, (list, tuple)) else 1 for row in given]
    if len(texts) == 1:
        return [len(given)]
    if len(given) != len(texts):
        raise InputsError(f"{len(given)} pictures for {len(texts)} texts: give a list of pictures per text")
    return [1] * len(texts)


def _user(text: str, pictures: int) -> Message:
    if not pictures:
        return {"role": "user", "content": text}
    return {"role": "user", "content": [{"type": "image"}] * pictures + [{"type": "text", "text": text}]}


def _render(messages: list[Message], holder: Any, settings: Mapping[str, Any], gaps: tuple[str, ...]) -> Chat:
    for message in messages:
        if "role" not in message or "content" not in message:
            raise InputsError(f"a message has a role and a content, got {dict(message)!r:.120}")
    images = [image for message in messages for image in _images(message)]
    given = {len(images)} - {0} and [image for image in images if image is not None]
    if given and len(given) != len(images):
        raise InputsError(
            f"{len(images)} pictures in the messages, {len(given)} of them given: give all, or none and images="
        )
    plain = [_stripped(message) for message in messages]
    options = {"add_generation_prompt": messages[-1]["role"] != "assistant", **settings}
    text = str(holder.apply_chat_template(plain, tokenize=False, **options))
    marks: list[tuple[str, str]] = []
    marked = [_marked(message, marks) for message in plain]
    skeleton = str(holder.apply_chat_template(marked, tokenize=False, **options))
    return Chat(text, _pieces(skeleton, marks), tuple(given or ()), gaps)


def _images(message: Message) -> list[Any]:
    parts = message["content"] if not isinstance(message["content"], str) else []
    return [
        next((part[key] for key in ("image", "path", "url") if key in part), None)
        for part in parts
        if part["type"] == "image"
    ]


def _stripped(message: Message) -> dict[str, Any]:
    content = message["content"]
    if not isinstance(content, str):
        content = [{"type": "image"} if part["type"] == "image" else dict(part) for part in content]
    return {**message, "content": content}


def _marked(message: Message, marks: list[tuple[str, str]]) -> dict[str, Any]:
    """The message with each text replaced by a mark; the marks remember speaker and text."""

    def mark(text: str) -> str:
        marks.append((SPEAKERS.get(message["role"], "text"), text))
        return f"qzx{len(marks) - 1}xzq"

    content = message["content"]
    if isinstance(content, str):
        return {**message, "content": mark(content)}
    return {**message, "content": [{**p, "text": mark(p["text"])} if p["type"] == "text" else p for p in content]}


def _pieces(skeleton: str, marks: Sequence[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """Template and messages in order; nothing where the template dropped, doubled or reordered a message."""
    parts = re.split(r"qzx(\d+)xzq", skeleton)
    if [int(number) for number in parts[1::2]] != list(range(len(marks))):
        return ()
    found: list[tuple[str, str]] = []
    for index, part in enumerate(parts):
        found.append(marks[int(part)] if index % 2 else ("template", part))
    return tuple(piece for piece in found if piece[1])


def spans(chat: Chat, text: str) -> list[tuple[int, int, str]] | None:
    """(start, end, speaker) of every piece in the text of the tokens, or None where they are not found in order."""
    pattern = "".join(f"({_loose(literal, chat.gaps)})" for _, literal in chat.pieces)
    match = re.search(pattern, text, re.DOTALL) if chat.pieces else None
    if match is None:
        return None
    return [(*match.span(i + 1), speaker) for i, (speaker, _) in enumerate(chat.pieces)]


def _loose(literal: str, gaps: Sequence[str]) -> str:
    """A pattern for a literal: any space for spaces, anything where a picture was written out."""
    pieces = re.split("(" + "|".join(map(re.escape, gaps)) + ")", literal) if gaps else [literal]
    return "".join(".*?" if i % 2 else _spaced(piece) for i, piece in enumerate(pieces))


def _spaced(text: str) -> str:
    return r"\s*".join(re.escape(word) for word in re.split(r"\s+", text))


def paint(inputs: Inputs, chats: Sequence[Chat], warn: Callable[[str, str], None]) -> Inputs:
    """Inputs whose text tokens say who speaks."""
    if not chats or inputs.texts is None or inputs.offsets is None:
        return inputs
    kind = inputs.roles.kind.clone()
    for row, chat in enumerate(chats):
        found = spans(chat, inputs.texts[row])
        if found is None:
            warn(
                "template", "the chat template rewrites its messages, so tokens are text, not system, user or assistant"
            )
            continue
        _speak(kind[row], inputs.offsets[row], found, _tail(inputs, row))
    return replace(inputs, roles=replace(inputs.roles, kind=kind))


def _tail(inputs: Inputs, row: int) -> int:
    return inputs.continuation[row] if inputs.continuation else inputs.length


def _speak(
    kind: torch.Tensor, offsets: Sequence[tuple[int, int]], found: Sequence[tuple[int, int, str]], tail: int
) -> None:
    """Write the speakers over `text`, and `template` over the marks between them; an answer is the assistant's."""
    for position, (start, end) in enumerate(offsets):
        code = int(kind[position])
        if position >= tail and code == CODE["text"]:
            kind[position] = CODE["assistant"]
            continue
        if end <= start or code not in (CODE["text"], CODE["special"]):
            continue
        middle = (start + end - 1) / 2
        speaker = next((name for left, right, name in found if left <= middle < right), None)
        if speaker is not None and (code == CODE["text"] or speaker == "template"):
            kind[position] = CODE[speaker]
