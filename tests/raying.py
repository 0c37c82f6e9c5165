"""Ray really started, and what may go wrong made to go wrong: `python raying.py FOLDER SCENARIO...` prints what each
scenario found as one line of JSON. A program of its own, since Ray talks to this machine by its name in the network,
which tests may not."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from toiling import Faults, Little, Lying, Toil

import interp
from interp.cells.work import chunks, gathered
from interp.kernels.errors import InterpError
from interp.metrics import LogitDifference
from interp.scale import Ray
from interp.zoo.families import tiny

BOTH = Ray(workers=2)
Found = dict[str, Any]


def written(folder: Path) -> dict[str, bytes]:
    """Every chunk and its checksum, if any was written."""
    return {file.name: file.read_bytes() for file in sorted((folder / "chunks").glob("*"))}


def toil(folder: Path, name: str, faults: Faults, how: Ray = BOTH, *, count: int = 24, size: int = 4) -> Found:
    """The work with faults on Ray's workers, held against the same in this process without; then gone on with."""
    model = interp.attach(Little())
    here, there = folder / f"{name}-here", folder / f"{name}-there"
    want = gathered(Toil(model, count, size), chunks(Toil(model, count, size), out=here))
    found: Found = {"error": "", "kept": 0}
    try:
        got = gathered(Toil(model, count, size), chunks(Toil(model, count, size, faults), out=there, engine=how))
        found["equal"] = all(got[0][one].equal(want[0][one]) for one in want[0]) and got[1] == want[1]
    except InterpError as why:
        found.update(
            error=f"{type(why).__name__}: {why}", kept=len([n for n in written(there) if n[-8:] == ".parquet"])
        )
        list(chunks(Toil(model, count, size), out=there))
    return {**found, "bytes": written(here) == {n: b for n, b in written(there).items() if "failed" not in n}}


def notes(folder: Path, name: str) -> str:
    """Where workers leave word."""
    (folder / f"{name}-notes").mkdir()
    return str(folder / f"{name}-notes")


def plain(folder: Path) -> Found:
    """Nothing goes wrong."""
    return toil(folder, "plain", Faults())


def once(folder: Path) -> Found:
    """A cell that raises once, one that kills its worker once, and little memory."""
    faults = Faults(notes(folder, "once"), raises_once=(3,), kills_once=(9,), most=2)
    return toil(folder, "once", faults)


def raises(folder: Path) -> Found:
    """A cell that raises always."""
    return toil(folder, "raises", Faults(raises=(5,)))


def hopeless(folder: Path) -> Found:
    """Every cell raises."""
    return toil(folder, "hopeless", Faults(raises=range(24)))


def deadly(folder: Path) -> Found:
    """A cell that kills every worker."""
    return toil(folder, "deadly", Faults(kills=(7,)), Ray(workers=2, deaths=2))


def memory(folder: Path) -> Found:
    """A cell for which no memory is enough."""
    return toil(folder, "memory", Faults(most=0), count=1, size=1)


def zero_copy(folder: Path) -> Found:
    """Where a worker's weights lie, and whether tied ones are tied."""
    work = Lying(interp.attach(Little()), 2, 1)
    values, _ = gathered(work, chunks(work, engine=BOTH))
    return {"shared": values["first"].tolist(), "tied": values["second"].tolist()}


def by_name(folder: Path) -> Found:
    """A model that a worker loads by itself, and one that it should not have."""
    m = interp.load("zoo:induction")
    x, y = m.prepare([[5, 6, 7, 5]]), m.prepare([[5, 8, 7, 5]])
    how: Found = {"base": x, "source": y, "metric": LogitDifference(answers=((6,),), wrong=((8,),)), "sites": "L*.H*.z"}
    want = interp.patch(m, **how)
    got = interp.patch(m, **how, engine=Ray(workers=1, model="zoo:induction"))
    found: Found = {"equal": bool(got.values.equal(want.values))}
    try:
        interp.patch(m, **how, engine=Ray(workers=1, model="zoo:ioi"))
    except InterpError as why:
        found["error"] = str(why)
    return found


def calls(folder: Path) -> Found:
    """Patching and influence, here and there, down to the bytes of what they save."""
    m = interp.attach(tiny("llama"))
    g = torch.Generator().manual_seed(3)
    base = torch.randint(5, 90, (2, 9), generator=g)
    source = torch.cat([base[:, :3], torch.randint(5, 90, (2, 6), generator=g)], 1)
    how: Found = {"base": {"input_ids": base}, "source": {"input_ids": source}, "sites": "L*.resid_pre",
                  "metric": LogitDifference(answers=((7,), (8,)), wrong=((10,), (11,))), "positions": "each",
                  "budget": 4000}  # fmt: skip
    interp.patch(m, **how, out=folder / "patch-here")
    interp.patch(m, **how, out=folder / "patch-there", engine=BOTH)
    needle = interp.load("zoo:needle")
    texts = [f"the key of room {n} is {n + 3} and the door is shut" for n in range(12)]
    scored: Found = {"heads": ["L1.H0"], "batch": 2, "chunk": 4}
    interp.long.influence(needle, texts, **scored, out=folder / "long-here")
    interp.long.influence(needle, texts, **scored, out=folder / "long-there", engine=BOTH)
    files = {n: n.replace("here", "there") for n in ("patch-here", "long-here/journal")}
    same = {n: written(folder / n) == written(folder / other) for n, other in files.items()}
    tables = {
        "patch": ("effects.parquet", "effects.safetensors"),
        "long": ("influence.parquet", "influence.safetensors"),
    }
    for call, saved in tables.items():
        here, there = [[(folder / f"{call}-{n}" / file).read_bytes() for file in saved] for n in ("here", "there")]
        same[f"{call} table"] = here == there
    return {"chunks": len(written(folder / "patch-here")), **same}


def corpus(folder: Path) -> Found:
    """Heads over a corpus of many blocks, one a cell, down to every byte that is saved."""
    m = interp.load("zoo:needle")
    lines = [f"the key of room {n} is {n + 3} and the door is {'shut' if n % 3 else 'open'}" for n in range(40)]
    (folder / "corpus.txt").write_text("\n".join(lines))
    how: Found = {"stats": ("entropy", "previous"), "reduce": ("mean", "quantile:0.5", "top:2"), "batch": 4}
    for name, engine in (("here", None), ("there", BOTH)):
        out = folder / f"corpus-{name}"
        interp.scale.corpus(m, folder / "corpus.txt", **how, block_bytes=300, out=out, engine=engine)
    here, there = (
        {str(file.relative_to(out)): file.read_bytes() for file in sorted(out.rglob("*")) if file.is_file()}
        for out in (folder / "corpus-here", folder / "corpus-there")
    )
    return {"files": sorted(here), "differ": [n for n in {*here, *there} if here.get(n) != there.get(n)]}


def kills(folder: Path, times: int = 30) -> Found:
    """So many kills of workers while they work, at random."""
    place, chance, killed = Path(notes(folder, "kills")), random.Random(7), []
    over = threading.Event()

    def strike() -> None:
        while len(killed) < times and not over.is_set():
            time.sleep(chance.uniform(0.02, 0.4))
            alive = [n for n in (int(file.name[4:]) for file in place.glob("pid-*")) if n not in killed]
            if alive:
                killed.append(chance.choice(alive))
                try:
                    os.kill(killed[-1], signal.SIGKILL)
                except ProcessLookupError:
                    killed.pop()

    thread = threading.Thread(target=strike)
    thread.start()
    try:
        found = toil(folder, "kills", Faults(str(place), seconds=0.15), Ray(workers=3), count=6 * times, size=2)
    finally:
        over.set()
        thread.join()
    return {**found, "killed": len(killed)}


def begun(*, num_cpus: int, tries: int = 3, **how: Any) -> Any:
    """A cluster without what these tests do not look at. On a machine that is busy Ray's own agents may be too slow
    for it: it gives them 15 seconds, and what it raises then has no class of its own."""
    from ray.cluster_utils import Cluster

    lean = {"num_cpus": num_cpus, "include_dashboard": False, "no_monitor": True, "include_log_monitor": False}
    for left in reversed(range(tries)):
        try:
            return Cluster(initialize_head=True, head_node_args=lean, **how)
        except Exception as why:
            if left and "timed out during startup" in str(why):
                print(f"Ray was too slow, {left} tries left", file=sys.stderr, flush=True)
                continue
            raise
    raise AssertionError(tries)


def nodes(folder: Path) -> Found:
    """Every node that works leaves while it works, and another one joins."""
    import ray

    cluster = begun(num_cpus=0, shutdown_at_exit=False)  # which a node that joins from a thread cannot see to
    first = cluster.add_node(num_cpus=2)
    moved: list[int] = []

    def change() -> None:
        place = Path(folder / "nodes-notes")
        while not list(place.glob("pid-*")):
            time.sleep(0.1)
        cluster.remove_node(first, allow_graceful=False)
        moved.append(1)
        time.sleep(2)
        cluster.add_node(num_cpus=2)
        moved.append(2)

    faults = Faults(notes(folder, "nodes"), seconds=0.3)
    thread = threading.Thread(target=change)
    thread.start()
    try:
        found = toil(folder, "nodes", faults, Ray(address=cluster.address, deaths=1))
        thread.join()
        with_none = Ray(address=cluster.address, threads=64, wait=1)
        small = toil(folder, "small", Faults(), with_none)
    finally:
        ray.shutdown()
        cluster.shutdown()
    return {**found, "moved": moved, "too_small": small["error"]}


def stopped(folder: Path) -> Found:
    """Work that goes on until somebody presses Ctrl-C, on a cluster of its own."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # also where the tests were started in the background
    faults = Faults(seconds=0.2)
    torch.manual_seed(0)
    try:
        list(chunks(Toil(interp.attach(Little()), 400, 2, faults), out=folder / "stopped", engine="ray"))
    except KeyboardInterrupt:
        sys.exit(130)
    return {}


SCENARIOS: dict[str, Callable[[Path], Found]] = {
    one.__name__: one
    for one in (plain, once, raises, hopeless, deadly, memory, zero_copy, by_name, calls, corpus, kills, nodes, stopped)
}


def main() -> None:
    """Scenarios one after the other, on one cluster but for those that have their own."""
    import ray

    torch.set_num_threads(1)
    folder, *names = sys.argv[1:]
    own = {"nodes", "stopped"}
    shared = begun(num_cpus=3) if set(names) - own else None
    for name in names:
        if shared is not None and name not in own and not ray.is_initialized():
            ray.init(address=shared.address, log_to_driver=False, logging_level="ERROR")
        if name in own:
            ray.shutdown()
        start = time.perf_counter()
        found = SCENARIOS[name](Path(folder))
        print(json.dumps({"scenario": name, "seconds": round(time.perf_counter() - start, 1), **found}), flush=True)
    ray.shutdown()
    if shared is not None:
        shared.shutdown()


if __name__ == "__main__":
    main()
