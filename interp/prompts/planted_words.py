"""The 64 words of the planted decoder."""

from __future__ import annotations

WORDS: tuple[str, ...] = tuple(
    """apple arrow basil beach bird boat book brick bridge candle castle chair cloud clover coat copper crow desk door
    drum ember feather fern field flute forest fox garden glass glove gold harbor hill honey horse island ivory kite
    lake lamp leaf lemon lion maple mirror moon nest olive onion pearl pine plum river rose salt shell silver snow star
    stone thorn tiger violin wolf""".split()
)
