"""Captions and object annotations for CHAIR (Rohrbach et al., arXiv 1809.02156).

`chair(captions, instances)` joins a file of captions (a JSON list or JSONL of `image_id, caption`, or the original
`{imgToEval: {id: {caption}}}`) with the objects of COCO's instances file (`categories`, `annotations`). The cache that
some ports ship as `chair.pkl` is a pickle and is refused; the join takes seconds.
Limits: object names are COCO's own; synonyms are for whoever counts.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from interp.reading import Entry, FormatError, content, lines, members, whole_file


@dataclass(frozen=True)
class CaptionedImage:
    """A picture, what a model said about it, and what is in it."""

    image_id: int
    """The number of the picture in COCO."""
    caption: str
    """What the model says about it."""
    objects: tuple[str, ...]
    """The names of the objects in it, by COCO's annotations, each name once."""


def chair(captions: str | Path, instances: str | Path) -> tuple[CaptionedImage, ...]:
    """Every caption with the objects of its picture; a caption of an unknown picture is an error."""
    known = objects(instances)
    said = [(entry, _image_id(entry), entry.text("caption")) for entry in _captions(captions)]
    for entry, image, _ in said:
        if image not in known:
            raise entry.fail(f"expected a picture that {instances} knows, got image_id {image}")
    return tuple(CaptionedImage(image, caption, known[image]) for _, image, caption in said)


def _captions(path: str | Path) -> list[Entry]:
    _, text = content(path)
    start = text.lstrip()[:1]
    if start == "[":
        return members(path)
    if '"imgToEval"' in text:
        inner = whole_file(path).inside("imgToEval")
        return [_original(inner, key) for key in inner.value]
    return lines(path)


def _original(inner: Entry, key: str) -> Entry:
    entry = inner.inside(key)
    return Entry(entry.file, entry.line, {"image_id": key, **entry.value})


def _image_id(entry: Entry) -> int:
    """A number, or a COCO file name that ends in one."""
    entry.need("image_id")
    digits = str(entry.value["image_id"]).rsplit("_", 1)[-1].split(".")[0]
    if not digits.isdigit():
        raise entry.fail(f"expected a number in 'image_id', got {entry.value['image_id']!r}")
    return int(digits)


def objects(instances: str | Path) -> Mapping[int, tuple[str, ...]]:
    """The names of the objects in each picture of a COCO instances file; pictures without any have an empty tuple."""
    names = {entry.whole("id"): entry.text("name") for entry in members(instances, "categories")}
    found: dict[int, set[str]] = defaultdict(set)
    if "images" in whole_file(instances).value:
        for entry in members(instances, "images"):
            found[entry.whole("id")] = set()
    for entry in members(instances, "annotations"):
        category = entry.whole("category_id")
        if category not in names:
            raise entry.fail(f"expected a category of this file, got category_id {category}")
        found[entry.whole("image_id")].add(names[category])
    if not found:
        raise FormatError(f"{instances}: no pictures")
    return {image: tuple(sorted(there)) for image, there in found.items()}
