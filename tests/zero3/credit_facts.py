"""What the ranks of one launch compute in steps of PPO and PRIME, written down.

torchrun --nproc_per_node=N credit_facts.py FOLDER OUTPUT

OUTPUT.json holds, by case, what each rank found.
"""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path

import torch
from credit_cases import credit_settings, credit_steps, credits_of
from zero3_cases import read_samples

from ttrl.learner.zero3 import Zero3Model
from ttrl.system.ranks import join_ranks, leave_ranks


def main(folder: Path, output: str) -> None:
    gc.freeze()  # DeepSpeed looks for garbage often: not in all that has been imported
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    ranks, samples = join_ranks(), read_samples(folder)
    facts = {}
    for case in credits_of(ranks.count):
        policy = Zero3Model.load(credit_settings(case, folder / "untied"), ranks)
        facts[case] = ranks.gather(credit_steps(policy, samples))
    if ranks.is_main:
        Path(f"{output}.json").write_text(json.dumps(facts), encoding="utf-8")
    leave_ranks()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
