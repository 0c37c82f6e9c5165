"""Tiny tokenizers and processors made by code: real Hugging Face classes, nothing downloaded, no torchvision.

Every picture processor is the PIL one. Video processors need torchvision in transformers 5.23, and Qwen-VL's and
InternVL's processors insist on one: here they are built without (`pictures_only`), and video is tested from ids.
SmolVLM's processor also needs num2words; it writes pictures as Idefics3's does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
from PIL import Image
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

CORPUS = [
    "When Mary and John went to the store, John gave a drink to Mary.",
    "What is in the image? A red square on the left of a blue circle.",
    "You are a helpful assistant. Answer in one word: yes or no. 0123456789",
    "user assistant system caption en describe USER ASSISTANT",
]
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}{% else %}IMAGE{% endif %}{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TURNS = ("<|im_start|>", "<|im_end|>")


def chat_template(image: str) -> str:
    """A ChatML template that writes `image` for each picture."""
    return CHAT.replace("IMAGE", image)


def _fast(backend: Tokenizer, special: dict[str, str], **settings: Any) -> Any:
    from transformers import PreTrainedTokenizerFast

    basic = {name: token for name, token in special.items() if name in ("bos_token", "eos_token", "pad_token")}
    basic |= {name: token for name, token in special.items() if name in ("unk_token", "cls_token", "sep_token")}
    extra = {name: token for name, token in special.items() if name not in basic}
    return PreTrainedTokenizerFast(tokenizer_object=backend, extra_special_tokens=extra, **basic, **settings)


def _opening(backend: Tokenizer, bos: str | None) -> None:
    if bos is not None:
        pair = [(bos, backend.token_to_id(bos))]
        backend.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=pair)


def bpe(
    special: dict[str, str] | None = None, *, bos: bool = False, chat: str | None = None, more: Sequence[str] = ()
) -> Any:
    """Byte-level BPE, as in GPT-2 and Llama-3; `bos` makes it open every text with `<s>`."""
    named = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", **(special or {})}
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=[*named.values(), *TURNS, *more],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS * 3, trainer)
    _opening(backend, "<s>" if bos else None)
    tokenizer = _fast(backend, named, additional_special_tokens=[*TURNS, *more])
    tokenizer.chat_template = chat
    return tokenizer


def sentencepiece(*, bos: bool = True) -> Any:
    """BPE with word-start marks and byte fallback, as in Llama-2 and Gemma."""
    named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    backend = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    bytes_ = [f"<0x{value:02X}>" for value in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=[*named.values(), *bytes_], show_progress=False)
    backend.train_from_iterator(CORPUS * 3, trainer)
    plain = Tokenizer(_unspecial(backend, bytes_))
    plain.pre_tokenizer, plain.decoder = backend.pre_tokenizer, backend.decoder
    plain.add_special_tokens(list(named.values()))
    _opening(plain, "<s>" if bos else None)
    return _fast(plain, named)


def _unspecial(backend: Tokenizer, bytes_: Sequence[str]) -> models.BPE:
    """The trained model with its byte tokens as ordinary vocabulary (the trainer only takes them as special)."""
    import json

    model = json.loads(backend.to_str())["model"]
    merges = [tuple(merge) if isinstance(merge, list) else tuple(merge.split(" ")) for merge in model["merges"]]
    assert set(bytes_) <= set(model["vocab"])
    return models.BPE(vocab=model["vocab"], merges=merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True)


def wordpiece() -> Any:
    """Lower-cased WordPiece with [CLS] and [SEP], as in BERT."""
    named = {"cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]", "pad_token": "[PAD]"}
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=200, special_tokens=list(named.values()), show_progress=False)
    backend.train_from_iterator(CORPUS * 3, trainer)
    ends = [(name, backend.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    backend.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    return _fast(backend, named, model_input_names=["input_ids", "token_type_ids", "attention_mask"])


def words(vocabulary: Sequence[str], *, bos: bool = True) -> Any:
    """One id per word."""
    named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    ids = {word: index for index, word in enumerate([*named.values(), *vocabulary])}
    backend = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    _opening(backend, "<s>" if bos else None)
    return _fast(backend, named)


def picture(height: int = 40, width: int = 60, seed: int = 0) -> Image.Image:
    """A random RGB picture."""
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


SIDE, PATCH = 28, 7


def llava() -> Any:
    """28-pixel pictures, 7-pixel patches, a CLS token that is dropped: 16 tokens."""
    from transformers import LlavaImageProcessorPil, LlavaProcessor

    tokenizer = bpe({"image_token": "<image>"}, bos=True, chat=chat_template("<image>"))
    images = LlavaImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    return LlavaProcessor(
        images, tokenizer, patch_size=PATCH, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=tokenizer.chat_template,
    )  # fmt: skip


PINPOINTS = [[28, 56], [56, 28], [56, 56], [84, 28], [28, 84]]


def llava_next() -> Any:
    """LLaVA-NeXT with tiles of 28 pixels."""
    from transformers import LlavaNextImageProcessorPil, LlavaNextProcessor

    tokenizer = bpe({"image_token": "<image>"}, bos=True, chat=chat_template("<image>"))
    square = {"height": SIDE, "width": SIDE}
    images = LlavaNextImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=square, image_grid_pinpoints=PINPOINTS)
    return LlavaNextProcessor(
        images, tokenizer, patch_size=PATCH, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=tokenizer.chat_template,
    )  # fmt: skip


def pictures_only(name: str) -> type:
    """A processor class that may lack a video processor; everything it does with text and pictures is its own."""
    import transformers

    whole = getattr(transformers, name)

    def check(self: Any, argument: str, value: Any) -> Any:
        return None if argument == "video_processor" else whole.check_argument_for_proper_class(self, argument, value)

    return type(name, (whole,), {"check_argument_for_proper_class": check})


def _qwen(name: str) -> Any:
    import transformers

    named = {
        "image_token": "<|image_pad|>", "video_token": "<|video_pad|>",
        "vision_start_token": "<|vision_start|>", "vision_end_token": "<|vision_end|>",
    }  # fmt: skip
    chat = chat_template("<|vision_start|><|image_pad|><|vision_end|>")
    tokenizer = bpe(named, chat=chat)
    images = transformers.Qwen2VLImageProcessorPil(
        patch_size=PATCH, merge_size=2, temporal_patch_size=2, size={"shortest_edge": 14 * 14, "longest_edge": 84 * 84}
    )
    return pictures_only(name)(images, tokenizer, None, chat_template=chat)


def qwen2_vl() -> Any:
    """Patches of 7 pixels merged two by two."""
    return _qwen("Qwen2VLProcessor")


def qwen2_5_vl() -> Any:
    """As Qwen2-VL."""
    return _qwen("Qwen2_5_VLProcessor")


def qwen3_vl() -> Any:
    """As Qwen2-VL."""
    return _qwen("Qwen3VLProcessor")


def internvl() -> Any:
    """Tiles of 28 pixels with 4-pixel-shuffled 14-pixel cells: 4 tokens each."""
    from transformers import GotOcr2ImageProcessorPil

    named = {
        "context_image_token": "<IMG_CONTEXT>", "start_image_token": "<img>", "end_image_token": "</img>",
        "video_token": "<video>",
    }  # fmt: skip
    tokenizer = bpe(named, chat=chat_template("<IMG_CONTEXT>"))
    square = {"height": SIDE, "width": SIDE}
    images = GotOcr2ImageProcessorPil(size=square, crop_to_patches=True, min_patches=1, max_patches=6)
    chat = tokenizer.chat_template
    return pictures_only("InternVLProcessor")(images, tokenizer, None, image_seq_length=4, chat_template=chat)


def paligemma() -> Any:
    """28-pixel pictures, 16 tokens before BOS."""
    from transformers import PaliGemmaProcessor, SiglipImageProcessorPil

    images = SiglipImageProcessorPil(size={"height": SIDE, "width": SIDE})
    images.image_seq_length = 16
    return PaliGemmaProcessor(images, bpe({"image_token": "<image>"}))


TAGS = [f"<row_{row}_col_{col}>" for row in range(1, 4) for col in range(1, 4)]


def idefics3() -> Any:
    """Tiles of 28 pixels, cells of 14: 4 tokens each."""
    from transformers import Idefics3ImageProcessorPil, Idefics3Processor

    more = ["<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>", *TAGS]
    tokenizer = bpe(bos=True, chat=chat_template("<image>"), more=more)
    images = Idefics3ImageProcessorPil(size={"longest_edge": 84}, max_image_size={"longest_edge": SIDE})
    return Idefics3Processor(images, tokenizer, image_seq_len=4, chat_template=tokenizer.chat_template)


def blip_2() -> Any:
    """Five queries before BOS."""
    from transformers import Blip2Processor, BlipImageProcessorPil

    images = BlipImageProcessorPil(size={"height": SIDE, "width": SIDE})
    return Blip2Processor(images, bpe(bos=True), num_query_tokens=5)


def instructblip() -> Any:
    """Five queries before BOS, and a tokenizer for the Q-Former."""
    from transformers import BlipImageProcessorPil, InstructBlipProcessor

    images = BlipImageProcessorPil(size={"height": SIDE, "width": SIDE})
    return InstructBlipProcessor(images, bpe(bos=True), wordpiece(), num_query_tokens=5)


def gemma3() -> Any:
    """28-pixel pictures pooled to 4 tokens between begin and end marks."""
    from transformers import Gemma3ImageProcessorPil, Gemma3Processor

    named = {"image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"}
    tokenizer = bpe(named, bos=True, chat=chat_template("<start_of_image>"))
    images = Gemma3ImageProcessorPil(size={"height": SIDE, "width": SIDE})
    return Gemma3Processor(images, tokenizer, image_seq_length=4, chat_template=tokenizer.chat_template)


def mllama() -> Any:
    """One image token; the picture comes in by cross-attention."""
    from transformers import MllamaImageProcessorPil, MllamaProcessor

    tokenizer = bpe({"image_token": "<|image|>"}, bos=True, chat=chat_template("<|image|>"), more=["<|python_tag|>"])
    images = MllamaImageProcessorPil(size={"height": SIDE, "width": SIDE}, max_image_tiles=4)
    return MllamaProcessor(images, tokenizer, chat_template=tokenizer.chat_template)


def clip() -> Any:
    """Text and pictures side by side."""
    from transformers import CLIPImageProcessorPil, CLIPProcessor

    images = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    return CLIPProcessor(images, bpe(bos=True))


PROCESSORS: dict[str, Callable[[], Any]] = {
    "llava": llava, "llava_next": llava_next, "qwen2_vl": qwen2_vl, "qwen2_5_vl": qwen2_5_vl, "qwen3_vl": qwen3_vl,
    "internvl": internvl, "paligemma": paligemma, "idefics3": idefics3, "blip-2": blip_2,
    "instructblip": instructblip, "gemma3": gemma3, "mllama": mllama, "clip": clip,
}  # fmt: skip


@cache
def processor(name: str) -> Any:
    """The processor of a family, built once."""
    return PROCESSORS[name]()


PLACEHOLDERS = {
    "llava": "<image>", "llava_next": "<image>", "internvl": "<IMG_CONTEXT>", "idefics3": "<image>",
    "gemma3": "<start_of_image>", "mllama": "<|image|>", "paligemma": "<image>", "blip-2": "", "instructblip": "",
    "qwen2_vl": "<|vision_start|><|image_pad|><|vision_end|>",
    "qwen2_5_vl": "<|vision_start|><|image_pad|><|vision_end|>",
    "qwen3_vl": "<|vision_start|><|image_pad|><|vision_end|>",
}  # fmt: skip
