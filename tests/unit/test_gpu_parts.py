"""How the GPU scripts run their parts: what is left of each, whatever comes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "bench" / "gpu"))

import check  # noqa: E402
import half_hour  # noqa: E402
import task  # noqa: E402
from parts import OUTPUT, Part, run  # noqa: E402


def part(name: str, code: str, limit_s: int = 60, **options: Any) -> Part:
    """A part that is a line of Python, to which ``record`` is the record of its result."""
    begin = "import sys, time; from pathlib import Path; from record import Record, skip; "
    code = f"{begin}record = Record(Path(sys.argv[1])); {code}"
    return Part(name, "", limit_s, ("-c", code, OUTPUT), **{"dry": (), **options})


def results(folder: Path) -> dict[str, dict]:
    return {path.stem: json.loads(path.read_text()) for path in folder.iterdir()}


def test_a_part_that_passes_leaves_its_result(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run([part("one", "record['x'] = 1")], tmp_path, dry=False) == 0
    found = results(tmp_path)["one"]
    assert found["status"] == "passed" and found["result"] == {"x": 1}
    assert 0 < found["seconds"] < 60 and found["limit_s"] == 60
    assert "one: passed in" in capfd.readouterr().out


def test_without_correctness_no_speed_but_the_other_checks(tmp_path: Path) -> None:
    parts = [
        part("right", "record['x'] = 1", correctness=True),
        part("wrong", "record['x'] = 2; sys.exit('off by 3')", correctness=True),
        part("other", "record['x'] = 3", correctness=True),
        part("speed", "record['x'] = 4"),
    ]
    assert run(parts, tmp_path, dry=False) == 1
    found = results(tmp_path)
    assert {name: f["status"] for name, f in found.items()} == {
        "right": "passed",
        "wrong": "failed",
        "other": "passed",
        "speed": "not run",
    }
    assert found["wrong"]["result"] == {"x": 2} and found["wrong"]["last_lines"][-1] == "off by 3"
    assert found["speed"]["why"] == "no speed without correctness: wrong"
    assert found["speed"]["result"] is None


def test_one_measurement_that_fails_does_not_stop_the_next(tmp_path: Path) -> None:
    parts = [part("wrong", "sys.exit(1)"), part("next", "record['x'] = 1")]
    assert run(parts, tmp_path, dry=False) == 1
    assert results(tmp_path)["next"]["status"] == "passed"


def test_nothing_runs_behind_a_gate_that_is_shut(tmp_path: Path) -> None:
    parts = [
        part("gate", "sys.exit('no GPU')", gate=True),
        part("check", "record['x'] = 1", correctness=True),
    ]
    assert run(parts, tmp_path, dry=False) == 1
    found = results(tmp_path)["check"]
    assert (found["status"], found["why"]) == ("not run", "gate did not pass")


def test_a_part_that_takes_too_long_keeps_what_it_has_found(tmp_path: Path) -> None:
    slow = part("slow", "record['x'] = 1; time.sleep(600)", limit_s=1)
    begun = time.monotonic()
    assert run([slow, part("next", "record['x'] = 2")], tmp_path, dry=False) == 1
    assert time.monotonic() - begun < 60
    found = results(tmp_path)
    assert (found["slow"]["status"], found["slow"]["result"]) == ("timed out", {"x": 1})
    assert found["next"]["status"] == "passed"


def test_a_limit_ends_what_a_part_has_started_too(tmp_path: Path) -> None:
    """Also where the part itself has ended, and left a process that holds on to its output."""
    child = (
        "import subprocess; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(99)'])"
    )
    begun = time.monotonic()
    run([part("parent", f"record['x'] = 1; {child}", limit_s=2)], tmp_path, dry=False)
    assert time.monotonic() - begun < 60
    assert results(tmp_path)["parent"]["result"] == {"x": 1}


@pytest.mark.parametrize("why", ["not installed", "too small"])
def test_what_cannot_run_here_is_skipped_with_the_reason(
    why: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    parts = {
        "not installed": part("one", "record['x'] = 1", needs=("json", "no_such_package")),
        "too small": part("one", "skip('needs a GPU of 70 GiB')"),
    }
    assert run([parts[why]], tmp_path, dry=False) == 0
    found = results(tmp_path)["one"]
    reasons = {
        "not installed": "not installed: no_such_package",
        "too small": "needs a GPU of 70 GiB",
    }
    assert (found["status"], found["why"]) == ("skipped", reasons[why])
    assert f"one: skipped{'' if why == 'not installed' else ' in'}" in capfd.readouterr().out


def test_earlier_results_are_gone_before_the_first_part_runs(tmp_path: Path) -> None:
    """Else a run that is cut off would leave them beside its own."""
    look = "record['old'] = Path(sys.argv[1]).with_name('two.json').exists()"
    parts = [part("one", look), part("two", "pass")]
    for _ in range(2):
        run(parts, tmp_path, dry=False)
        assert results(tmp_path)["one"]["result"] == {"old": False}


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_script_that_is_ended_keeps_what_there_is(sent: signal.Signals, tmp_path: Path) -> None:
    """The part that runs ends with it, also if it is killed and can do nothing more."""
    code = (
        "from test_gpu_parts import part; from parts import main\n"
        "first = part('first', \"record['x'] = 1\")\n"
        "last = part('last', \"import os; record['pid'] = os.getpid(); time.sleep(600)\")\n"
        "main('', [first, last])\n"
    )
    paths = [Path(__file__).parent, ROOT / "bench" / "gpu", ROOT]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))}
    script = subprocess.Popen(
        [sys.executable, "-c", code, "--output", str(tmp_path)],
        env=environment,
        # A shell's job in the background ignores it, and its children would.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    partial = tmp_path / "last.partial.json"
    deadline = time.monotonic() + 60
    while not partial.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    child = json.loads(partial.read_text())["pid"]
    script.send_signal(sent)
    assert script.wait(60) != 0
    while _alive(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _alive(child)
    found = results(tmp_path)
    assert found["first"]["status"] == "passed" and found["first"]["result"] == {"x": 1}
    if sent == signal.SIGKILL:
        assert found["last.partial"] == {"pid": child}
    else:
        assert (found["last"]["status"], found["last"]["result"]) == ("cut off", {"pid": child})


def _alive(pid: int) -> bool:
    """Whether a process runs: one that nobody has waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_the_limits_keep_the_time_that_the_scripts_promise() -> None:
    assert sum(p.limit_s for p in check.PARTS) <= 9.5 * 60
    assert sum(p.limit_s for p in half_hour.PARTS) <= 30 * 60
    for p in half_hour.PARTS:  # each is a command of ten minutes, with the gate before it
        assert check.ENVIRONMENT.limit_s + p.limit_s <= 9.5 * 60


def test_correctness_comes_first() -> None:
    checks = [p.correctness or p.gate for p in check.PARTS]
    assert checks == sorted(checks, reverse=True) and checks.count(False) == 1


def test_every_part_has_a_name_of_its_own() -> None:
    for parts in (check.PARTS, half_hour.PARTS):
        assert len({p.name for p in parts}) == len(parts)


def test_the_tests_of_the_gpu_need_no_hypothesis() -> None:
    """Not every machine with a GPU has it; the tests that use it do not run there."""
    code = """
import importlib.util, sys
import pytest

class Hidden:
    def find_spec(self, name, *rest):
        if name.partition(".")[0] == "hypothesis":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Hidden())
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *r: None if name == "hypothesis" else found(name, *r)
options = ["-q", "-p", "no:hypothesispytest", "-p", "no:cacheprovider"]
kernels = ["tests/kernels/test_cuda.py", "tests/kernels/test_triton_rows.py"]
attention = "tests/unit/test_attention.py::test_no_row_sees_a_later_one"
sys.exit(pytest.main([*options, *kernels, attention]))
"""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    environment.pop("TRITON_INTERPRET", None)
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0 and "1 passed" in done.stdout, done.stdout + done.stderr


CPU = {
    "policy/loss": -2e-3,
    "policy/grad_norm": 0.27,
    "policy/entropy": 0.08,
    "policy/sampler_max_gap": 1e-5,
}


def test_another_update_than_the_cpus_is_refused() -> None:
    task.refuse_difference({**CPU, "policy/grad_norm": 0.27005}, CPU)
    for key, value in {"policy/loss": -2.1e-3, "policy/grad_norm": 0.271}.items():
        with pytest.raises(SystemExit, match=f"{key} is {value} on the GPU, {CPU[key]}"):
            task.refuse_difference({**CPU, key: value}, CPU)
    with pytest.raises(SystemExit, match=r"log-prob differs by 0.002, expected < 0.001"):
        task.refuse_difference(CPU, {**CPU, "policy/sampler_max_gap": 2e-3})


@pytest.mark.parametrize(("test", "code"), [("assert True", 0), ("pytest.skip('no GPU')", 5)])
def test_tests_that_were_all_skipped_have_checked_nothing(
    test: str, code: int, tmp_path: Path
) -> None:
    (tmp_path / "test_one.py").write_text(f"import pytest\ndef test_one(): {test}\n")
    plugin = ("-p", "pytest_record", "-p", "no:cacheprovider", "--record", "found.json")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *plugin, "test_one.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT / "bench" / "gpu")},
        capture_output=True,
        check=False,
    )
    assert done.returncode == code, done.stdout
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["passed"] == (code == 0)
    assert found["skipped"] == ({} if code == 0 else {"Skipped: no GPU": 1})
