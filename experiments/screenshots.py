"""The two pictures of the explorer in README: pages of two zoo models, in a headless browser without a network.

    python experiments/screenshots.py

Writes docs/explorer-heads.png and docs/explorer-picture.png, and runs/explorer/*.html, the pages themselves. Needs
playwright and Chromium (`make test` installs both where it may).
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, sync_playwright

import interp

ROOT = Path(__file__).parent.parent
COLOURS, SIZE = 256, (1200, 1080)


def language() -> interp.explorer.Explorer:
    """Exact and estimated effects of a trained model on indirect object identification, and a circuit of it."""
    m = interp.load("zoo:ioi")
    task = interp.tasks.ioi(m, n=32)
    pair = {"base": task.corrupt, "source": task.clean, "metric": task.metric}
    results = {
        "patch z, denoising": interp.patch(m, **pair, sites="L*.H*.z"),
        "relp": interp.attribute(m, **pair, sites="L*.H*.z", method="relp"),
    }
    circuit = interp.edges(m, **pair, method="eap-ig").circuit(fraction=0.02)
    return interp.explore(m, task, results=results, circuit=circuit)


def picture() -> interp.explorer.Explorer:
    """Where the heads of a vision-language model look in a picture."""
    m = interp.load("zoo:shapes-lvlm")
    task = interp.tasks.shapes(m, n=8)
    effects = interp.patch(m, base=task.corrupt, source=task.clean, metric=task.metric, sites="text.L*.H*.z")
    return interp.explore(m, task, results={"patch z, denoising": effects})


def shoot(browser: Browser, made: interp.explorer.Explorer, name: str, *, fragment: str, size: tuple[int, int]) -> Path:
    """One page at one place, in few colours."""
    page = made.save(ROOT / "runs" / "explorer" / f"{name}.html")
    context = browser.new_context(offline=True, viewport={"width": size[0], "height": size[1]})
    tab = context.new_page()
    tab.goto(f"{page.as_uri()}#{fragment}")
    tab.wait_for_selector("html[data-ready=yes]")
    out = ROOT / "docs" / f"explorer-{name}.png"
    out.parent.mkdir(exist_ok=True)
    tab.screenshot(path=out)
    context.close()
    Image.open(out).convert("RGB").quantize(COLOURS, kmeans=4, dither=Image.Dither.NONE).save(out, optimize=True)
    return out


def main() -> None:
    executable = shutil.which("chromium")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=executable, args=["--no-sandbox", "--disable-gpu"])
        shots = [
            shoot(browser, language(), "heads", fragment="head=L2.H6&pins=L0.H1%2BL0.H2", size=SIZE),
            shoot(browser, picture(), "picture", fragment="head=text.L0.H2&root=1", size=SIZE),
        ]
        browser.close()
    print(json.dumps({"bytes": {str(shot.relative_to(ROOT)): shot.stat().st_size for shot in shots}}))


if __name__ == "__main__":
    main()
