"""Resident memory per rank of a model that no rank may hold: loaded, updated, pushed, exported.

    .venv/bin/python bench/sharded_memory.py               2.2 GB of weights, on 1, 2 and 4 ranks
    .venv/bin/python bench/sharded_memory.py --dry-run     a small one, on 2: is it within bounds?

Each phase's peak is the kernel's own record (VmHWM, set back before it). It must not be above what
the process held before, after it had trained a tiny model once, the rank's share of all that the
phase needs, two layers and constants that do not grow with the model; all of that is written down.
Every rank is a process on this machine's CPU, in float32, with a KL reference; they take 14 GB
together. Writes ``bench/results/sharded_memory.json``; ends with 1 if a bound does not hold.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from machine import ROOT, describe
from transformers import AutoConfig

from ttrl.learner import zero3
from ttrl.learner.policy_objective import PolicyObjective
from ttrl.models import weight_files
from ttrl.models.pretrained import load_bare_outline
from ttrl.models.weight_files import write_weights
from ttrl.settings import ModelSettings, Settings
from ttrl.settings.recipe import load_settings
from ttrl.system.ranks import join_ranks, leave_ranks
from ttrl.types import TrainSample

SHAPES: dict[str, dict[str, int]] = {
    "2.2 GB": {"vocab_size": 8192, "hidden_size": 2048, "intermediate_size": 5632},
    "small": {"vocab_size": 4096, "hidden_size": 768, "intermediate_size": 2048},
    "tiny": {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 64},
}
LAYERS = 12
REST = 200 * 2**20
"""Bytes for what no formula counts: code that is loaded late, messages, a few activations."""
MIB = 2**20
M_MMAP_THRESHOLD = -3
"""Of <malloc.h>."""


def write_model(folder: Path, shape: str) -> None:
    """Random weights, never more of them in memory than a file's."""
    config = AutoConfig.for_model(
        "qwen2",
        **SHAPES[shape],
        num_hidden_layers=LAYERS,
        num_attention_heads=16,
        num_key_value_heads=4,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
    )
    config.save_pretrained(folder)
    outline = load_bare_outline(ModelSettings(path=str(folder), dtype="float32"))

    def weights() -> Iterator[tuple[str, torch.Tensor]]:
        for name, parameter in outline.named_parameters():
            yield name, torch.empty(parameter.shape).normal_(1 if "norm" in name else 0, 0.02)

    write_weights(folder, outline, weights())


def settings_for(folder: Path) -> Settings:
    """ZeRO-3 in float32 with a KL term, on sequences so short that only weights count."""
    return load_settings(
        "tiny-arithmetic",
        overrides=[
            f"model.path={folder}",
            "model.dtype=float32",
            "policy.backend=zero3",
            "loss.kl_coef=0.1",
            "policy.sequences_per_update=4",
        ],
    )


class Peak:
    """The most that this process has had in memory at once since it was made."""

    def __init__(self) -> None:
        """Start anew."""
        Path("/proc/self/clear_refs").write_text("5")

    def bytes(self) -> int:
        """So far."""
        status = Path("/proc/self/status").read_text()
        (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024


def measure(folder: Path, output: Path, *, small: bool) -> None:
    """What each rank of this launch held in each phase, and what it may have held."""
    # What is freed goes back to the system at once: a peak is what was held, not what was kept.
    assert ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 2**16) == 1
    if small:  # so that they do not hide a small model
        weight_files.FILE_BYTES, zero3.REDUCE_BUCKET, zero3.SUB_GROUP = 20 * MIB, 10**6, 2 * 10**6
    torch.set_num_threads(1)
    zero3.require_deepspeed()
    settings, ranks = settings_for(folder), join_ranks()
    outline = load_bare_outline(settings.model)
    numbers = sum(p.numel() for p in outline.parameters())
    share = -(-numbers // ranks.count)
    largest, layer = zero3.live_parameters(outline)
    completion = tuple(range(1, 9))
    samples = [
        TrainSample.of_answer(f"q{i}", (i, 7), completion, (-9.0,) * 8, 1.0 - i) for i in range(4)
    ]
    tiny = zero3.Zero3Model.load(settings_for(folder.with_name("tiny")), ranks)
    tiny.update(samples, PolicyObjective.of(settings, tiny), 1e-6)
    tiny.hand_over(list)
    before = Peak().bytes()
    peaks: dict[str, int] = {}
    phase = Peak()
    policy = zero3.Zero3Model.load(settings, ranks)
    peaks["load"], phase = phase.bytes(), Peak()
    policy.update(samples, PolicyObjective.of(settings, policy), 1e-6)
    peaks["update"], phase = phase.bytes(), Peak()
    for _, weight in policy.named_weights():
        weight.sum()
    peaks["push"], phase = phase.bytes(), Peak()
    written = folder.with_name(f"written_{ranks.count}")
    written.mkdir(exist_ok=True)
    policy.hand_over(lambda weights: write_weights(written, policy.model, weights))
    peaks["export"] = phase.bytes()
    # Parameters, the reference's, the optimizer's copy, gradients; then two moments.
    loaded, states = 4 * 4 * share, 6 * 4 * share
    constants = {
        "load": {},
        "update": {
            "gradient bucket": 4 * min(zero3.REDUCE_BUCKET, numbers),
            # A flat gradient, and AdamW's denominator.
            "optimizer temporaries": 2 * 4 * min(zero3.SUB_GROUP + largest, share),
        },
        "push": {},
        # Rank 0 copies a layer, and waits until a file is full.
        "export": {"file": weight_files.FILE_BYTES + 4 * largest} if ranks.is_main else {},
    }
    facts = {
        name: {
            "peak": peak,
            "bound": {
                "before": before,
                "share": loaded if name == "load" else states,
                "two layers": 4 * 2 * max(layer, largest),
                **constants[name],
                "rest": REST,
            },
        }
        for name, peak in peaks.items()
    }
    found = ranks.gather(facts)
    if ranks.is_main:
        output.write_text(json.dumps(found), encoding="utf-8")
    leave_ranks()


def launch(ranks: int, folder: Path, *, small: bool) -> list[dict[str, Any]]:
    """What `measure` says on so many ranks."""
    output = folder.with_name(f"ranks_{ranks}.json")
    command = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}", __file__]
    subprocess.run(
        [sys.executable, *command, "--measure", str(folder), str(output)]
        + (["--dry-run"] if small else []),
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        check=True,
    )
    found: list[dict[str, Any]] = json.loads(output.read_text(encoding="utf-8"))
    return found


def report(ranks: int, found: list[dict[str, Any]], model: int) -> tuple[dict[str, Any], bool]:
    """The rank with the least left of its bound, per phase, in MiB; whether all bounds hold."""
    rows: dict[str, Any] = {}
    for phase in found[0]:
        own = min((f[phase] for f in found), key=lambda f: sum(f["bound"].values()) - f["peak"])
        bound = sum(own["bound"].values())
        rows[phase] = {
            "peak_mib": round(own["peak"] / MIB),
            "bound_mib": round(bound / MIB),
            "bound_is": {k: round(v / MIB) for k, v in own["bound"].items()},
            "holds": own["peak"] <= bound,
        }
        print(
            f"{ranks} ranks  {phase:<7} peak {own['peak'] / MIB:7.0f} MiB of {bound / MIB:7.0f}  "
            f"(the model has {model / MIB:.0f})"
        )
    return rows, all(row["holds"] for row in rows.values())


def main() -> int:
    """Write the model, launch the ranks, print and write what they held."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dry-run", action="store_true", help="small; nothing is written")
    parser.add_argument("--measure", nargs=2, type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(*options.measure, small=options.dry_run)
        return 0
    small = options.dry_run
    with tempfile.TemporaryDirectory() as beside:
        folder = Path(beside) / "model"
        write_model(folder, "small" if small else "2.2 GB")
        write_model(folder.with_name("tiny"), "tiny")
        model = sum(p.stat().st_size for p in folder.glob("*.safetensors"))
        runs, hold = {}, True
        for ranks in (2,) if small else (1, 2, 4):
            rows, held = report(ranks, launch(ranks, folder, small=small), model)
            runs[str(ranks)], hold = rows, hold and held
    result = {"machine": describe(), "model_mib": round(model / MIB), "ranks": runs}
    if small:
        print(json.dumps(result, indent=1))
    else:
        text = json.dumps(result, indent=1) + "\n"
        (ROOT / "bench" / "results" / "sharded_memory.json").write_text(text, encoding="utf-8")
    return 0 if hold else 1


if __name__ == "__main__":
    sys.exit(main())
