#!/usr/bin/env python3
"""Writes tests/golden/eplb/placements.json: placements by DeepSeek's own eplb.py (MIT), which this
project's parallel/eplb.cpp follows from its description. Needs torch.

  tools/dump_eplb.py DIR_OF_EPLB_PY tests/golden/eplb/placements.json
"""
import json
import random
import sys

import torch

sys.path.insert(0, sys.argv[1])
import eplb  # noqa: E402

SHAPES = [  # experts, replicas, groups, nodes, gpus
    (12, 16, 4, 2, 8),
    (12, 16, 3, 2, 8),    # groups do not divide by nodes: global
    (8, 8, 1, 1, 4),      # no redundancy
    (8, 8, 8, 8, 8),      # one group a node, one expert a GPU
    (16, 24, 4, 4, 8),
    (60, 64, 1, 1, 16),
    (64, 128, 8, 2, 16),  # as many copies as experts
    (128, 144, 1, 1, 16),
    (256, 288, 8, 4, 32),
]


def main():
    rng = random.Random(20261121)
    readme = [[90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86],
              [20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27]]
    cases = []

    def add(weight, shape):
        experts, replicas, groups, nodes, gpus = shape
        phy2log, _, _ = eplb.rebalance_experts(torch.tensor(weight), replicas, groups, nodes, gpus)
        for row, result in zip(weight, phy2log.tolist()):
            cases.append({"load": row, "num_physical": replicas, "num_groups": groups,
                          "num_nodes": nodes, "num_ranks": gpus, "physical_to_logical": result})

    add(readme, SHAPES[0])
    for shape in SHAPES:
        # Distinct loads: the order of equal ones is not specified there. Some layers are skewed.
        even = rng.sample(range(1, 60000), shape[0])
        skewed = sorted(rng.sample(range(1, 2000), shape[0]))
        skewed[-shape[0] // 8:] = rng.sample(range(2000, 60000), len(skewed[-shape[0] // 8:]))
        rng.shuffle(skewed)
        add([even, skewed], shape)
    lines = ",\n".join("  " + json.dumps(case) for case in cases)
    with open(sys.argv[2], "w") as file:
        file.write('{"source": "deepseek-ai/EPLB eplb.py d52c72d, torch %s, seed 20261121",\n'
                   ' "cases": [\n%s\n]}\n' % (torch.__version__.split("+")[0], lines))


main()
