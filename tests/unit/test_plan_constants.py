"""What measurements say of the plan's constants: only what was measured, by the stated formula."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "bench" / "gpu"))

import constants

from ttrl.plan import Machine

ENVIRONMENT = {
    "nvidia_smi": {"memory.used": "4 MiB"},
    "gpu": {"stated_gib": 80.0, "seen_gib": 79.2},
    "rates": {"matmul_tflops": 800.0, "copy_gb_s": 3000.0, "host_copy_gb_s": 50.0},
    "context_gib": 0.5,
}


def update(tflops: float, lost: float) -> dict:
    return {"tflops": {"update": tflops}, "measured_gib": {"lost_share": lost}}


def written(folder: Path, parts: dict[str, dict], gpu: str = "H100") -> dict:
    """What `constants.main` writes for these results."""
    for name, result in parts.items():
        found = {"part": name, "machine": {"gpu": gpu}, "result": result}
        (folder / f"{name}.json").write_text(json.dumps(found))
    constants.main(folder / "constants.json")
    return json.loads((folder / "constants.json").read_text())


def values(found: dict) -> dict[str, float]:
    rows = found["constants"]
    return {name: row["value"] for name, row in rows.items() if row["value"] is not None}


def test_each_follows_from_its_measurement(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = {
        "environment": ENVIRONMENT,
        "update_0.5b": {"plain": update(400.0, 0.02), "liger": update(440.0, 0.04)},
        "update_1.5b": {"plain": update(480.0, 0.09)},
    }
    found = written(tmp_path, parts)
    assert values(found) == pytest.approx(
        {
            "usable_share": 0.99,
            "context_gib": 0.5,
            "tflops": 800.0,
            "hbm_gb_s": 3000.0,
            "pcie_gb_s": 50.0,
            "fragmentation": 0.04,
            "train_utilization": 0.55,
        }
    )
    assert found["gpu"] == "H100" and found["constants"]["tflops"]["assumed"] == 312.0
    row = found["constants"]["train_utilization"]
    assert row["values"] == pytest.approx([0.5, 0.55, 0.6])
    assert "update_0.5b plain, update_0.5b liger, update_1.5b plain" in row["source"]
    changes = capsys.readouterr().out.splitlines()[-1].split()[3:]
    machine = Machine(1, 80).changed(c for c in changes if c != "--machine")
    assert (machine.tflops, machine.train_utilization) == (800.0, 0.55)


def test_nothing_is_said_of_what_was_not_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert values(written(tmp_path, {})) == {}
    out = capsys.readouterr().out
    assert "nothing was measured" in out and "nccl_gib" in out
    for row in out.splitlines()[1:-1]:
        assert row.endswith("not measured")


def test_a_dry_run_implies_nothing(tmp_path: Path) -> None:
    cpu = {"nvidia_smi": "no such file", "rates": {"matmul_tflops": 1.0, "copy_gb_s": 1.0}}
    parts = {
        "environment": cpu,
        "update_1.5b": {"plain": {"tflops": {"update": 0.1}, "measured_gib": {}}},
    }
    assert values(written(tmp_path, parts)) == {}


def test_the_context_is_not_known_where_others_use_the_gpu(tmp_path: Path) -> None:
    busy = {**ENVIRONMENT, "nvidia_smi": {"memory.used": "900 MiB"}}
    assert "context_gib" not in values(written(tmp_path, {"environment": busy}))


def test_a_name_that_says_no_size_implies_no_share(tmp_path: Path) -> None:
    gpu = {"stated_gib": None, "seen_gib": 139.8}
    found = values(written(tmp_path, {"environment": {**ENVIRONMENT, "gpu": gpu}}))
    assert "usable_share" not in found and found["tflops"] == 800.0


def test_utilization_needs_the_rate_of_the_same_machine(tmp_path: Path) -> None:
    found = written(tmp_path, {"update_1.5b": {"plain": update(480.0, 0.05)}})
    assert values(found) == {"fragmentation": 0.05}


def test_a_part_that_was_cut_off_counts(tmp_path: Path) -> None:
    partial = tmp_path / "update_1.5b.partial.json"
    partial.write_text(json.dumps({"plain": update(480.0, 0.05)}))
    assert values(written(tmp_path, {}))["fragmentation"] == 0.05


def test_results_of_two_gpus_are_not_mixed(tmp_path: Path) -> None:
    written(tmp_path, {"environment": ENVIRONMENT})
    with pytest.raises(SystemExit, match="several GPUs in one folder: A100, H100"):
        written(tmp_path, {"update_1.5b": {"plain": update(100.0, 0.05)}}, gpu="A100")
