"""How much more memory a pass over a corpus takes where the corpus is longer: for experiments/bench/scale.py.

Each size is read in a process of its own, whose largest resident memory the system says. Documents are long and only
their first words go through the model, so that hundreds of megabytes of text are read in a minute or two.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

WORDS = "When Mary and John went to the store , John gave a drink to Mary . "
DOCUMENT = 4000
"""Bytes of a document, about."""


def mb_per_gb(megabytes: int) -> tuple[float, list[float]]:
    """Megabytes of memory for each gigabyte of corpus, from one of so many and one ten times as long; both peaks. Both
    have several blocks (of 4 MB), so that what is held for one has been as large as it gets."""
    with tempfile.TemporaryDirectory() as folder:
        sizes = [megabytes, 10 * megabytes]
        peaks = [_peak(_corpus(Path(folder) / f"{size}.jsonl", size)) for size in sizes]
    return (peaks[1] - peaks[0]) / ((sizes[1] - sizes[0]) / 1000), peaks


def _corpus(path: Path, megabytes: int) -> Path:
    text = WORDS * (DOCUMENT // len(WORDS))
    with path.open("w", encoding="utf-8") as file:
        for n in range(megabytes * 1_000_000 // DOCUMENT):
            file.write(json.dumps({"text": text[n % 60 :]}) + "\n")
    return path


def _peak(path: Path) -> float:
    ran = subprocess.run([sys.executable, __file__, str(path)], check=True, capture_output=True, text=True)
    return float(ran.stdout.splitlines()[-1])


def main() -> None:
    """Read the corpus of one file and say the peak in megabytes."""
    import interp

    m = interp.load("zoo:ioi")
    interp.scale.corpus(
        m, sys.argv[1], stats=["entropy", "previous token"], reduce=["mean", "quantile:0.5", "top:10"], max_tokens=8,
        batch=64,
    )  # fmt: skip
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


if __name__ == "__main__":
    main()
