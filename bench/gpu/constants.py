"""The plan's assumptions about a machine, beside what its GPU's measurements say.

    python bench/gpu/constants.py FOLDER/constants.json      reads the other parts' JSON in FOLDER

What no part has measured stays "not measured": no constant is guessed from another.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from statistics import median
from typing import Any

from record import write_json

from ttrl.plan import Machine

Results = Mapping[str, Mapping[str, Any]]
"""What parts have measured, by name."""
ALONE_MIB = 100.0
"""What a GPU that nobody else uses may show as used before a program begins."""
UPDATES = ("update_0.5b", "update_1.5b", "update_7b_lora", "update_zero3")


@dataclass(frozen=True)
class Implied:
    """A constant, as a measurement would have it."""

    value: float
    source: str
    """Which part, and how the value follows from it."""
    values: tuple[float, ...] = ()
    """Where the value is a median: of these."""


def main(path: Path) -> None:
    """Read the folder of ``path``, print a table, write ``path``."""
    results, gpus = read(path.parent)
    if len(gpus) > 1:
        raise SystemExit(f"results of several GPUs in one folder: {', '.join(sorted(gpus))}")
    found = implied(results)
    assumed = {f.name: f.default for f in fields(Machine) if isinstance(f.default, float)}
    constants = {
        name: {"assumed": value, **(vars(found[name]) if name in found else {"value": None})}
        for name, value in assumed.items()
    }
    gpu = next(iter(gpus), None)
    write_json(path, {"gpu": gpu, "read": sorted(results), "constants": constants})
    print(f"{'constant':20} {'assumed':>10} {'measured':>10}  from")
    for name, row in constants.items():
        if row["value"] is None:
            print(f"{name:20} {row['assumed']:10.4g} {'':>10}  not measured")
        else:
            print(f"{name:20} {row['assumed']:10.4g} {row['value']:10.4g}  {row['source']}")
    changes = [f"--machine {name}={c.value:.4g}" for name, c in found.items()]
    print("ttrl plan ... " + " ".join(changes) if changes else "nothing was measured")


def read(folder: Path) -> tuple[Results, set[str]]:
    """The results of the parts in a folder, by name, and the GPUs that they come from."""
    results, gpus = {}, set()
    for path in sorted(folder.glob("*.json")):
        found = json.loads(path.read_text(encoding="utf-8"))
        if path.name.endswith(".partial.json"):  # the part was cut off with all that ran it
            results[path.name.removesuffix(".partial.json")] = found
        elif found.get("result"):
            results[found["part"]] = found["result"]
            gpus |= {found["machine"]["gpu"]} if found["machine"] else set()
    return results, gpus


def implied(results: Results) -> dict[str, Implied]:
    """The constants that these results change."""
    found = of_environment(results.get("environment", {}))
    rounds = list(updates(results))
    lost = [(where, r["measured_gib"]["lost_share"]) for where, r in rounds]
    if lost:
        found["fragmentation"] = middle(
            lost, "reserved beyond the most in use, of what comes and goes"
        )
    if "tflops" in found:
        shares = [(where, r["tflops"]["update"] / found["tflops"].value) for where, r in rounds]
        if shares:
            found["train_utilization"] = middle(
                shares, "of the tflops above, recomputation included"
            )
    return found


def of_environment(result: Mapping[str, Any]) -> dict[str, Implied]:
    """What the environment part alone says; nothing where it had no GPU."""
    gpu, found = result.get("gpu"), {}
    if gpu is None:
        return {}
    if gpu["stated_gib"] is not None:
        share = gpu["seen_gib"] / gpu["stated_gib"]
        found["usable_share"] = Implied(share, "environment: memory that torch sees, of its name's")
    if "context_gib" in result and used_mib(result["nvidia_smi"]) <= ALONE_MIB:
        source = "environment: in use, less what torch reserves, after a matrix product"
        found["context_gib"] = Implied(result["context_gib"], source)
    names = {
        "tflops": ("matmul_tflops", "environment: a bfloat16 product of 8192 squared"),
        "hbm_gb_s": ("copy_gb_s", "environment: a copy on the GPU, read and written"),
        "pcie_gb_s": ("host_copy_gb_s", "environment: a copy to or from pinned memory"),
    }
    for name, (key, source) in names.items():
        if key in result.get("rates", {}):
            found[name] = Implied(result["rates"][key], source)
    return found


def updates(results: Results) -> list[tuple[str, Mapping[str, Any]]]:
    """Each update that was measured on a GPU, and its name."""
    return [
        (f"{part} {variant}", results[part][variant])
        for part in UPDATES
        for variant in ("plain", "liger")
        if results.get(part, {}).get(variant, {}).get("measured_gib")
    ]


def middle(values: Sequence[tuple[str, float]], how: str) -> Implied:
    """The median of what several parts say."""
    numbers = tuple(value for _, value in values)
    names = ", ".join(where for where, _ in values)
    return Implied(median(numbers), f"{names}: {how}", numbers)


def used_mib(nvidia_smi: Mapping[str, str] | str) -> float:
    """What was in use before; infinite where nobody said it."""
    if isinstance(nvidia_smi, str):
        return float("inf")
    return float(nvidia_smi["memory.used"].split()[0])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
