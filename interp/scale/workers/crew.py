"""The workers of one piece of work: begun, given pieces, replaced where they die, and let go at the end."""

from __future__ import annotations

import re
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from interp.cells.failures import CellsFailed
from interp.cells.work import Finished, Work
from interp.hooks.errors import ModelError
from interp.kernels.errors import InterpError
from interp.scale.workers.actor import facts, said, worker_class
from interp.scale.workers.cluster import ClusterError, nodes, room
from interp.scale.workers.pieces import Piece, Pieces
from interp.scale.workers.transport import packed

LOOK = 2.0
"""How often, in seconds, the cluster is asked what it has."""
VERDICT = 30.0
"""How long, in seconds, Ray may take to say why a worker cannot be reached."""


@dataclass(frozen=True, kw_only=True)
class Terms:
    """How many workers, what each of them gets, and how patient one is with them."""

    workers: int | None = None
    """How many workers at most; None for as many as the nodes can hold."""
    gpus: float | int = 0.0
    """How many devices a worker gets; 0.25: four workers share one."""
    threads: int = 1
    """How many processors a worker gets, and how many threads it computes with."""
    model: str | Path | None = None
    """A name or directory from which each worker loads the model; None to hand the weights over."""
    tries: int = 3
    """How often a piece of work that raises an error is tried."""
    deaths: int = 9
    """A piece of work is given up after so many workers died over it."""
    wait: float | int = 60.0
    """How long to wait for a node that can hold a worker, in seconds."""
    bar: bool = True
    """Whether a progress bar is shown, on a terminal."""

    def __post_init__(self) -> None:
        counts = (self.workers if self.workers is not None else 1, self.threads, self.tries, self.deaths)
        parts = self.gpus >= 0 and (self.gpus < 1 or self.gpus == int(self.gpus))
        if any(type(n) is not int or n < 1 for n in counts) or not parts or self.wait < 0:
            raise InterpError(
                "workers, threads, tries and deaths are whole numbers of at least 1, gpus is a part below 1 or a whole"
                f" number, wait is in seconds; got {self}."
            )


@dataclass(eq=False)
class Hand:
    """One worker: whether it has begun, and what it was given, the first of which it works on."""

    actor: Any
    starting: Any
    jobs: deque[tuple[Any, Piece]] = field(default_factory=deque)

    @property
    def waits_for(self) -> Any:
        """What comes from it next, if anything."""
        return self.starting if self.starting is not None else self.jobs[0][0] if self.jobs else None


class Crew:
    """All workers, and what is left to do."""

    def __init__(self, ray: Any, how: Terms, work: Work, bounds: Sequence[tuple[int, int]]) -> None:
        self.ray, self.how, self.work = ray, how, work
        self.pieces = Pieces(bounds, how.tries, how.deaths)
        self.cells = sum(high - low for low, high in bounds)
        self.hands: list[Hand] = []
        self.stillborn = 0
        """How many workers died before they began, one after the other."""
        self._looked, self._room = 0.0, 0
        self._idle_since: float | None = time.monotonic()
        self._class = ray.remote(worker_class())
        self._start = self._handed_over()

    def _handed_over(self) -> tuple[Any, ...]:
        """What a worker begins with, put into the object store once."""
        from ray import cloudpickle

        recipe, model = self.work.recipe, self.work.model
        if recipe is None:
            raise ModelError(
                f"{type(self.work).__name__} has no recipe by which another process could make it, so it runs in this"
                " process only: leave engine= out."
            )
        if model.device.type != "cpu" and not self.how.gpus:
            raise ModelError(
                f"the model is on {model.device}, and workers without a device would compute on the processor: say how"
                " much of a device a worker gets, Ray(gpus=1) or a part."
            )
        instead = None if self.how.model is None else (model, str(self.how.model))
        pickled, arrays = packed((recipe, model, facts(self.work)), instead=instead, base=cloudpickle.CloudPickler)
        kept = [self.ray.put(one) for one in arrays]
        return said(), sys.path, self.ray.put(pickled), kept, self.how.gpus > 0, self.how.threads

    def finished(self) -> Iterator[Finished]:
        """Chunks as they are finished; what was given up is raised about at the end."""
        try:
            with self._bar() as bar:
                while self.pieces.left and not self.pieces.hopeless:
                    self._hire()
                    self._hand_out()
                    for hand in self._heard():
                        for low, high, values, floors in self._taken(hand):
                            bar.update(high - low)
                            yield low, high, values, floors
        finally:
            for hand in self.hands:
                self.ray.kill(hand.actor)
        if self.pieces.given_up:
            rest = "None was finished, so no more were tried" if self.pieces.hopeless else "The others are done"
            again = "with out= those are kept, and the same call tries what is missing again."
            raise CellsFailed(self.pieces.given_up, self.cells, f"{rest}: {again}")

    def _bar(self) -> Any:
        from tqdm import tqdm

        off = True if not self.how.bar else None
        return tqdm(total=self.cells, unit=" cells", desc="ray", delay=2, leave=False, disable=off, file=sys.stderr)

    def _hire(self) -> None:
        """As many workers as were asked for, or as the nodes that are there now can hold; no more than can be busy."""
        if time.monotonic() - self._looked >= LOOK:
            self._looked, self._room = time.monotonic(), room(self.ray, threads=self.how.threads, gpus=self.how.gpus)
        wanted = self.how.workers or max(1, self._room)
        busy = sum(bool(hand.jobs) for hand in self.hands)
        while len(self.hands) < min(wanted, busy + len(self.pieces.waiting)):
            actor = self._class.options(
                num_cpus=self.how.threads, num_gpus=self.how.gpus, max_restarts=0, max_task_retries=0
            ).remote()
            self.hands.append(Hand(actor, actor.start.remote(*self._start)))
        self._patient()

    def _patient(self) -> None:
        """No worker for long: an error where no node could hold one."""
        if any(hand.starting is None for hand in self.hands):
            self._idle_since = None
            return
        self._idle_since = self._idle_since or time.monotonic()
        if time.monotonic() - self._idle_since > self.how.wait and not self._room:
            raise ClusterError(
                f"no node of the cluster can hold a worker of {self.how.threads} CPUs and {self.how.gpus:g} GPUs: it"
                f" has {nodes(self.ray)}. Ask for less, or add a node."
            )

    def _hand_out(self) -> None:
        """One piece to each worker that has none, and a second one while there are enough for all."""
        begun = [hand for hand in self.hands if hand.starting is None]
        for most in (1, 2):
            for hand in begun:
                plenty = most == 1 or len(self.pieces.waiting) > len(self.hands)
                if len(hand.jobs) < most and plenty and (piece := self.pieces.take()) is not None:
                    hand.jobs.append((hand.actor.compute.remote(piece.low, piece.high), piece))

    def _heard(self) -> list[Hand]:
        """Workers that have something to say."""
        waits = {hand.waits_for: hand for hand in self.hands if hand.waits_for is not None}
        if not waits:
            time.sleep(0.1)
            return []
        ready, _ = self.ray.wait(list(waits), num_returns=1, timeout=LOOK)
        return [waits[ref] for ref in ready]

    def _taken(self, hand: Hand) -> Iterator[Finished]:
        errors = self.ray.exceptions
        try:
            found = self.ray.get(hand.waits_for)
        except errors.RayTaskError as why:
            self._raised(hand, why)
        except errors.ActorUnavailableError as why:
            self._died(hand, self._verdict(hand, why))
        except errors.RayError as why:
            self._died(hand, why)
        else:
            if hand.starting is not None:
                hand.starting, self.stillborn = None, 0
                return
            _, piece = hand.jobs.popleft()
            if (whole := self.pieces.done(piece, *found[2:])) is not None:
                yield whole

    def _verdict(self, hand: Hand, why: Any) -> Any:
        """Why a worker could not be reached: Ray knows a little later whether it died, or its node."""
        errors, end = self.ray.exceptions, time.monotonic() + VERDICT
        while time.monotonic() < end:
            try:
                self.ray.get(hand.actor.__ray_ready__.remote(), timeout=VERDICT)
            except errors.ActorUnavailableError:
                time.sleep(0.5)
            except errors.GetTimeoutError:
                break
            except errors.RayError as later:
                return later
            else:
                break
        return why

    def _raised(self, hand: Hand, why: Any) -> None:
        """A piece that raised is noted; a worker that cannot begin ends the work, since the next one could not."""
        if hand.starting is None:
            _, piece = hand.jobs.popleft()
            self.pieces.failed(piece, _last(why))
            return
        cause, place = why.cause, _place(why)
        if isinstance(cause, ImportError):
            raise ClusterError(
                f"a worker on {place} cannot import what it needs ({cause}): install the same version of interp with"
                " its extras there, or add its directory to PYTHONPATH of the workers."
            ) from why
        raise ClusterError(f"a worker on {place} could not begin: {_last(why)}") from why

    def _died(self, hand: Hand, why: Any) -> None:
        """A worker is gone; what it worked on is done again by another one."""
        self.hands.remove(hand)
        self.ray.kill(hand.actor)
        said = _first(why)
        if hand.starting is not None:
            self.stillborn += not _of_its_node(said)
            if self.stillborn >= self.how.deaths:
                raise ClusterError(
                    f"{self.stillborn} workers died one after the other before they began: {said}"
                ) from why
        for n, (_, piece) in reversed(list(enumerate(hand.jobs))):
            if n or _of_its_node(said):
                self.pieces.back(piece)
            elif isinstance(why, self.ray.exceptions.OutOfMemoryError) and piece.high - piece.low > 1:
                self.pieces.halve(piece)
            else:
                self.pieces.lost(piece, said)


def _of_its_node(said: str) -> bool:
    """Whether a worker is gone because its machine is, or cannot be reached."""
    return any(words in said for words in ("node has died", "node was", "is unavailable"))


def _place(why: Any) -> str:
    """The machine that an error came from: Ray says so in its text only."""
    found = re.search(r"\bip=([^,\s)]+)", str(why))
    return found[1] if found else "the cluster"


def _last(why: Any) -> str:
    """What was raised in a worker, in a line."""
    cause = why.cause
    return f"{type(cause).__name__}: {cause}".rstrip(".") if cause is not None else str(why).strip().splitlines()[-1]


def _first(why: Any) -> str:
    return " ".join(str(why).split())[:500]
