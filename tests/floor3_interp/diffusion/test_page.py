"""The page of the docs on diffusion runs as it stands; it needs diffusers, so it is not among those that always do."""

from __future__ import annotations

import re

import pytest
from denoisers import library
from house import ROOT

pytestmark = pytest.mark.filterwarnings("default")


def test_its_examples_run(capsys: pytest.CaptureFixture[str]) -> None:
    library()
    codes = re.findall(
        r"^```python setup\n(.*?)^```", (ROOT / "docs" / "diffusion.md").read_text(), re.MULTILINE | re.DOTALL
    )
    assert len(codes) == 2
    for code in codes:
        exec(compile(code, "diffusion.md", "exec"), {"__name__": "example"})  # noqa: S102
    said = capsys.readouterr().out
    assert "Watched(2 of 4 calls" in said
    assert "Hunt: 2 of 6 heads" in said
    assert said.count("mode=RGB size=24x24") == 2
