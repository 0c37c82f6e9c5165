"""What vLLM mixes into its worker: calls that a `Served` engine makes over `collective_rpc`.

vLLM imports this file in every process of the engine, so it imports nothing itself; the hooks on the heads
(`inside.py`) is imported with the first call, next to the model. Arguments and answers are text and bytes, which cross
processes as they are.
"""

from __future__ import annotations

from typing import Any


class HeadsInWorker:
    """`worker_extension_cls` of an engine whose heads are read: each name begins with `interp_`, since vLLM refuses
    those that its workers have already."""

    def interp_describe(self) -> str:
        """The layers that run here, their heads, and which part of them this worker holds, as JSON."""
        return self._interp_inside().described()

    def interp_digest(self) -> str:
        """A digest of the weights that lie here; those that the engine packed for its processor are not read."""
        return self._interp_inside().digest()

    def interp_open(self, plan: str, values: bytes) -> None:
        """From now on do this to the requests that carry the plan's key."""
        self._interp_inside().begin(plan, values)

    def interp_take(self, key: str) -> tuple[str, bytes]:
        """What a plan has brought, and its end."""
        return self._interp_inside().take(key)

    def interp_close(self) -> None:
        """Forget every plan and leave the model as it was found."""
        found = vars(self).pop("_interp_here", None)
        if found is not None:
            found.close()

    def _interp_inside(self) -> Any:
        if "_interp_here" not in vars(self):
            from interp.scale.serving.inside import Inside

            vars(self)["_interp_here"] = Inside(self)
        return vars(self)["_interp_here"]
