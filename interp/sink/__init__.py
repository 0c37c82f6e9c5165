"""Where heads rest: `sinks` finds sink tokens and massive activations, `sink_knockout` takes them away, `act`
calibrates heads that do better with less weight there.
"""

from __future__ import annotations

from interp.sink.act import act
from interp.sink.sink_knockout import sink_knockout
from interp.sink.sinks import sinks

__all__ = ["act", "sink_knockout", "sinks"]
