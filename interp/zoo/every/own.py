"""What is said of a type by name: numbers that depend on each other in a way that their names do not say.

`OWN` is put into a config after it was shrunk, `GIVEN` before it is made, where it is checked at once.
"""

from __future__ import annotations

from collections.abc import Mapping

from interp.zoo.every.joint import GIVEN_JOINT, JOINT, SOUND
from interp.zoo.every.pictures import GIVEN_PICTURES, PICTURES
from interp.zoo.every.said import Said
from interp.zoo.every.words import GIVEN_WORDS, WORDS

OWN: Mapping[str, Said] = {**WORDS, **PICTURES, **JOINT, **SOUND}
GIVEN: Mapping[str, Said] = {**GIVEN_WORDS, **GIVEN_PICTURES, **GIVEN_JOINT}
CLASSES: Mapping[str, str] = {
    "musicgen": "MusicgenForConditionalGeneration",
    "musicgen_melody": "MusicgenMelodyForConditionalGeneration",
}
"""Classes where the first list that has a type names one of a part of it."""
