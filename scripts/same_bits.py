"""Compare what another commit and this tree train, bit for bit.

    .venv/bin/python scripts/same_bits.py COMMIT            all runs of scripts/same_bits.toml
    .venv/bin/python scripts/same_bits.py COMMIT kl lora    some of them

For changes that must change nothing: both make the same short runs, and every sampled token, every
log-prob and every trained weight must be the same. Ends with 1 if one differs. COMMIT is checked
out beside this tree, and uses the compiled rows of this one.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file

ROOT = Path(__file__).parent.parent
COMPILED = Path("kernels/ttrl_kernels")
SOURCES = ("kernels/csrc", "CMakeLists.txt")


def make_run(tree: Path, name: str, folder: Path) -> None:
    """Train the run ``name`` of a tree's list in ``folder``, with the code of that tree."""
    listed = tomllib.loads((tree / "scripts" / "same_bits.toml").read_text())
    command = [sys.executable, "-m", "ttrl.cli", "train", "tiny-arithmetic"]
    for override in [*listed["common"], *listed["runs"][name]]:
        command += ["--set", override]
    if ranks := listed["ranks"].get(name):
        command += ["--ranks", str(ranks)]
    run(tree, [*command, "--run-dir", str(folder)])
    if (step := listed["resume"].get(name)) is None:
        return
    go_back(folder, step)
    run(tree, [*command, "--run-dir", str(folder), "--resume"])


def go_back(folder: Path, step: int) -> None:
    """Leave of a finished run what it would be if it had been killed after ``step`` was saved."""
    (folder / "summary.json").unlink()
    shutil.rmtree(folder / "model")
    for path in (folder / "checkpoints").iterdir():
        if int(path.name.removeprefix("step_")) > step:
            shutil.rmtree(path)


def run(tree: Path, command: list[str]) -> None:
    """Run a command with the packages of a tree; its output is shown only if it fails."""
    path = os.pathsep.join([str(tree), str(tree / "kernels")])
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(
        command, cwd=tree, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")


def bits(folder: Path) -> dict[str, torch.Tensor]:
    """All that a run sampled and trained, as bytes."""
    found = {}
    for path in [*folder.glob("rollouts/*.safetensors"), *folder.glob("model/*.safetensors")]:
        for name, tensor in load_file(path).items():
            found[f"{path.relative_to(folder)}/{name}"] = tensor.flatten().view(torch.uint8)
    return found


def difference(before: Path, after: Path) -> str:
    """What differs first between two runs; empty if nothing does."""
    ours, theirs = bits(before), bits(after)
    if absent := sorted(ours.keys() ^ theirs.keys()):
        return f"{absent[0]} is in one of them only"
    differ = sorted(name for name in ours if not torch.equal(ours[name], theirs[name]))
    return f"{len(differ)} of {len(ours)} tensors differ, {differ[0]} first" if differ else ""


@contextmanager
def checked_out(commit: str) -> Iterator[Path]:
    """Give another commit's tree, with the compiled rows of this one."""
    git = ["git", "-C", str(ROOT)]
    commit = subprocess.check_output([*git, "rev-parse", commit], text=True).strip()
    if subprocess.run([*git, "diff", "--quiet", commit, "--", *SOURCES], check=False).returncode:
        sys.exit(f"the C++ rows of {commit} are others: build them there, and compare by hand")
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        subprocess.run([*git, "worktree", "add", "--quiet", "--detach", tree, commit], check=True)
        try:
            for compiled in (ROOT / COMPILED).glob("_rows*.so"):
                shutil.copy(compiled, tree / COMPILED)
            yield tree
        finally:
            subprocess.run([*git, "worktree", "remove", "--force", tree], check=True)


def main() -> None:
    """Make the runs with both commits and say which are the same."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("commit")
    parser.add_argument("runs", nargs="*")
    arguments = parser.parse_args()
    names = tomllib.loads((ROOT / "scripts" / "same_bits.toml").read_text())["runs"]
    failed = False
    with checked_out(arguments.commit) as tree, tempfile.TemporaryDirectory() as folder:
        for name in arguments.runs or names:
            before, after = Path(folder) / "before" / name, Path(folder) / "after" / name
            make_run(tree, name, before)
            make_run(ROOT, name, after)
            said = difference(before, after)
            failed |= bool(said)
            count = sum(map(len, bits(after).values()))
            print(f"{name:10} {said or f'the same {count} bytes'}", flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
