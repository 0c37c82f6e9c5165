"""A sweep that really runs out of memory goes on in halves, with the same numbers."""

from __future__ import annotations

import json

from house import python

SWEEP = """
import json, resource, torch, interp
from interp.zoo.families import tiny
from interp.metrics import LogitDifference
import interp.hooks.drive.sweep as sweep
torch.set_num_threads(1)
m = interp.attach(tiny("gpt2"))
base = torch.randint(5, 90, (24, 24), generator=torch.Generator().manual_seed(1))
source = torch.randint(5, 90, (24, 24), generator=torch.Generator().manual_seed(2))
everything = lambda logits, inputs: logits[:, -1, 3] - logits[:, -1, 4]
def run(budget):
    return interp.patch(m, base={"input_ids": base}, source={"input_ids": source}, metric=everything,
                        sites="L*.resid_pre", positions="each", budget=budget)
interp.patch(m, base={"input_ids": base}, source={"input_ids": source}, metric=everything, sites="L1.z")
held = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (held + ROOM, -1))
tight = run(2**40)
resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
calm = run(None)
found = {"calm": calm.meta["halvings"], "tight": tight.meta["halvings"],
         "gap": float((calm.values - tight.values).abs().max()), "floor": max(calm.noise_floor, tight.noise_floor),
         "largest": float(calm.values.abs().max())}
print(json.dumps(found))
"""


def test_running_out_of_memory_halves_the_chunk_and_keeps_the_numbers() -> None:
    found = json.loads(python(SWEEP.replace("ROOM", str(16 * 2**20))).splitlines()[-1])
    assert found["calm"] == 0
    assert found["tight"] > 0
    assert found["largest"] > 0.1
    assert found["gap"] <= 4 * max(found["floor"], 2e-7)
