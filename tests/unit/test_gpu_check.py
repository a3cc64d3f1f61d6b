"""The scripts for machines with a GPU, as far as they can be run without one."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench"
sys.path += [str(BENCH / "gpu"), str(BENCH / "kernels")]

import check  # noqa: E402
import half_hour  # noqa: E402

SCRIPTS = {"gpu_check.sh": check.PARTS, "gpu_half_hour.sh": half_hour.PARTS}
SAME_WHEN_DRY = {
    "kernels": ("gpu_check.sh", "kernels"),
    "kernels_growth": ("gpu_check.sh", "kernels"),
    "update_1.5b": ("gpu_half_hour.sh", "update_0.5b"),
    "task_local": ("gpu_check.sh", "train_local"),
}
"""Parts of the half hour that are left out here, and which one is the same program in a dry run."""
SET_WHEN_DRY = {
    *("gpu", "gpu-check", "gpu-growth"),  # profiles
    *("--shape=qwen2.5-0.5b", "--shape=qwen2.5-1.5b"),
    *("--steps=8", "--small"),
}
"""Arguments in whose place a dry run puts its own."""

Finished = dict[str, tuple[int, str, dict[str, dict]]]


def start(script: str, folder: Path, *names: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        ["bash", str(BENCH / script), "--dry-run", "--output", str(folder), *names],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """Exit code, output and JSON of each script; both run at the same time."""
    folders = {script: tmp_path_factory.mktemp(script) for script in SCRIPTS}
    names = [part.name for part in half_hour.PARTS if part.name not in SAME_WHEN_DRY]
    running = {
        "gpu_check.sh": start("gpu_check.sh", folders["gpu_check.sh"]),
        "gpu_half_hour.sh": start("gpu_half_hour.sh", folders["gpu_half_hour.sh"], *names),
    }
    found = {}
    for script, process in running.items():
        output, _ = process.communicate()
        files = {path.stem: json.loads(path.read_text()) for path in folders[script].iterdir()}
        found[script] = (process.returncode, output, files)
    return found


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_dry_run_goes_through_every_part(script: str, finished: Finished) -> None:
    code, output, files = finished[script]
    assert code == 0, output
    left_out = SAME_WHEN_DRY.keys() if script == "gpu_half_hour.sh" else set()
    assert set(files) == {part.name for part in SCRIPTS[script]} - left_out
    for name, found in files.items():
        assert (found["status"], found["part"]) == ("passed", name), output
        assert found["result"] and found["machine"]["torch"] and found["seconds"] > 0
        for number in numbers(found["result"]):
            assert math.isfinite(number), (name, found["result"])


@pytest.mark.parametrize("left_out", SAME_WHEN_DRY)
def test_what_is_left_out_is_the_same_program(left_out: str) -> None:
    import profiles  # here, since it imports torch

    script, name = SAME_WHEN_DRY[left_out]
    (ours,) = [part for part in half_hour.PARTS if part.name == left_out]
    (theirs,) = [part for part in SCRIPTS[script] if part.name == name]
    assert (ours.dry, set(ours.needs)) == (theirs.dry, set(theirs.needs))
    differing = set(ours.arguments) ^ set(theirs.arguments)
    assert differing - {"--against-cpu"} <= SET_WHEN_DRY  # what that does, it does at the end
    for profile in differing & {"gpu", "gpu-growth"}:
        assert profiles.profile(profile)


def numbers(value: object) -> Iterator[float]:
    """All of them, however deep."""
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from numbers(inner)
    elif isinstance(value, float):
        yield value


def test_kernels_are_compared_with_float64_before_they_are_timed(finished: Finished) -> None:
    _, _, files = finished["gpu_check.sh"]
    errors = files["launch"]["result"]["errors"]
    assert 0 < errors["logp"] < 1e-5 and 0 < errors["entropy"] < 1e-5
    assert 1e-5 < errors["gradient"] < 1e-2  # it is rounded to bfloat16
    runs = files["kernels"]["result"]["runs"]
    assert len(runs) == 8
    for run in runs:
        assert run["rows"]["ttrl_kernels"]["ratio"] > 0
        assert not any("wrong" in row.get("failed", "") for row in run["rows"].values())


def test_outcomes_of_tests_are_counted(finished: Finished) -> None:
    _, _, files = finished["gpu_check.sh"]
    kernels, attention = (files[n]["result"] for n in ("kernel_tests", "attention_tests"))
    assert (kernels["passed"], kernels["failed"]) == (1, [])
    assert kernels["skipped"]["Skipped: no CUDA device"] > 40
    assert attention["passed"] == 1 and sum(attention["skipped"].values()) >= 9


def test_attention_is_as_near_float32_as_plain_bfloat16(finished: Finished) -> None:
    found = finished["gpu_check.sh"][2]["attention"]["result"]["tiny"]
    for name in ("out", "query", "key", "value"):
        assert 1e-4 < found["ours"][name] < 1e-2
        assert found["ours"][name] <= 2 * found["plain"][name] + 1e-3
    assert found["same bits, strict"] is True


def test_the_same_answers_are_trained_on_twice(finished: Finished) -> None:
    found = finished["gpu_check.sh"][2]["train_local"]["result"]
    (first,), (second,) = found["steps"], found["cpu"]
    assert first["policy/grad_norm"] == second["policy/grad_norm"] > 0
    assert first["policy/loss"] == second["policy/loss"] != 0


def test_an_update_is_timed_by_part_and_planned(finished: Finished) -> None:
    _, _, files = finished["gpu_half_hour.sh"]
    for name in ("update_0.5b", "update_7b_lora", "update_zero3"):
        found = files[name]["result"]["plain"]
        seconds = found["seconds"]
        assert 0 < sum(seconds.values()) - seconds["update"] < seconds["update"]
        assert found["tokens_per_s"] == pytest.approx(found["tokens"] / seconds["update"])
        assert {"loss", "backward", "optimizer"} <= set(found["planned_gib"])
        for moment in found["planned_gib"].values():
            rest = sum(v for k, v in moment.items() if k != "total")
            assert moment["total"] == pytest.approx(rest)
            assert rest > 0
        by_part = sum(found["tflops"][p] * seconds[p] for p in ("loss", "backward"))
        assert by_part == pytest.approx(found["tflops"]["update"] * seconds["update"])
        assert name == "update_zero3" or "GPU" in files[name]["result"]["liger"]["skipped"]


def test_nothing_is_implied_by_a_dry_run(finished: Finished) -> None:
    found = finished["gpu_half_hour.sh"][2]["constants"]["result"]
    assert found is None or all(row["value"] is None for row in found["constants"].values())


def test_a_script_that_is_killed_has_kept_its_first_part(tmp_path: Path) -> None:
    process = start("gpu_check.sh", tmp_path, "launch")
    first, deadline = tmp_path / "environment.json", time.monotonic() + 120
    while not first.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)  # the script's own process: it has become its interpreter
    process.communicate()
    found = json.loads(first.read_text())
    assert found["status"] == "passed" and found["result"]["rates"]["copy_gb_s"] > 0
    assert not (tmp_path / "launch.json").exists()


@pytest.mark.skipif("CUDA_VISIBLE_DEVICES" in os.environ, reason="whether there is a GPU is unsure")
def test_without_a_gpu_nothing_is_measured(tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is one")
    command = ["bash", str(BENCH / "gpu_check.sh"), "launch", "--output", str(tmp_path)]
    environment = {**os.environ, "PYTHON": sys.executable}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    found = {path.stem: json.loads(path.read_text()) for path in tmp_path.iterdir()}
    assert "sees no CUDA device" in found["environment"]["last_lines"][-1]
    assert found["launch"]["status"] == "not run"
