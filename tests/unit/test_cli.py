"""What a user types, and what comes back."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from command_line import call
from runs import make_run

from ttrl.settings.recipe import model_names


@pytest.mark.parametrize("recipe", ["aime24", "amc", "math500", "gpqa"])
@pytest.mark.parametrize("model", model_names())
def test_every_model_and_benchmark_of_the_paper(
    recipe: str,
    model: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    code, out, _ = call(capsys, monkeypatch, "train", recipe, "--model", model, "--dry-run")
    assert code == 0
    settings = tomllib.loads(out)
    assert settings["name"] == f"{recipe}-{model}"
    assert settings["rollout"]["votes"] == 64
    assert settings["policy"]["trained_samples"] == 32


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "tiny-aritmetic"], "did you mean 'tiny-arithmetic'?"),
        (
            ["train", "tiny-arithmetic", "--set", "policy.train_samples=3"],
            "'policy.trained_samples'?",
        ),
        (["train", "tiny-arithmetic", "--set", "policy.trained_samples=65"], "rollout.votes = 64"),
        (["train", "tiny-arithmetic", "--set", "reward.estimator=majorty"], "'majority'?"),
        (["train", "tiny-arithmetic", "--resume"], "there is no run in runs/tiny-arithmetic"),
        (["export", "nowhere", "out"], "is no run and no checkpoint"),
        (["export", "nowhere", "."], ". exists; name a new folder"),
        (["export", "nowhere", "no/such/out"], "no folder"),
        (["export", "nowhere", "out", "--best", "--step", "3"], "give one of them"),
        (["train", "aime24"], "names no model: add --model"),
        (["train", "aime24", "--model", "qwen2.5-math-7"], "did you mean 'qwen2.5-math-7b'?"),
        (["train", "tiny-arithmetic", "--run-dir", "r\udcff"], "'r\\udcff' is not UTF-8"),
        (["train", "tiny-arithmetic", "--replay", "runs/tiny-arithmetic/rollouts"], "its own"),
        (["train", "tiny-arithmetic", "--set", "lora.alpha=16"], "need lora.rank"),
        (
            [
                *("train", "tiny-arithmetic", "--set", "rollout.max_new_tokens=8180"),
                *("--set", "memory.tokens_per_batch=20000"),
            ],
            "in all, but the model's context is 8192; lower rollout.max_new_tokens",
        ),
        (["eval", "tiny-base", "arithmetic:train", "--k", "0"], "--k 0: expected 1 or more"),
        (["serve", "tiny-stream", "--run-dir", "."], "--run-dir . exists and holds no run"),
        (["eval", "tiny-base", "arithmetic:train", "--k", "17"], "evaluation.samples=17"),
        (["eval", "tiny-base", "nowhere.jsonl"], "no file at nowhere.jsonl"),
        (
            ["eval", "tiny-base", "arithmetic:train", "--json", "no/such/x.json"],
            "no folder no/such",
        ),
    ],
)
def test_errors_are_one_line(
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = call(capsys, monkeypatch, *arguments)
    assert code == 2
    assert err.startswith("ttrl: error: ")
    assert message in err
    assert err.count("\n") == 1
    assert out == ""
    assert list(tmp_path.iterdir()) == []


def test_eval_without_answers(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    data = tmp_path / "q.jsonl"
    data.write_text('{"prompt": "What is 12 + 34?"}')
    code, _, err = call(capsys, monkeypatch, "eval", "tiny-base", str(data))
    assert code == 2
    assert "no row has an answer (data.answer_field = 'answer')" in err


def test_doctor(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    code, out, _ = call(capsys, monkeypatch, "doctor")
    assert code == 0
    assert "kernels: torch" in out
    assert "self-test: sample and train" in out
    assert "FAILED" not in out


def test_doctor_reports_a_failure(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import ttrl.doctor.doctor

    def broken() -> str:
        raise RuntimeError("[/y] broken")

    monkeypatch.setitem(ttrl.doctor.doctor.SELF_TESTS, "sample and train", broken)
    code, out, _ = call(capsys, monkeypatch, "doctor")
    assert code == 1
    assert "FAILED: RuntimeError: [/y] broken" in out


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        (
            "ttrl train tiny",
            [
                "tiny-agents",
                "tiny-arithmetic",
                "tiny-one-example",
                "tiny-self-posed",
                "tiny-stream",
            ],
        ),
        ("ttrl eval qwen2.5-math", ["qwen2.5-math-1.5b", "qwen2.5-math-7b"]),
        ("ttrl settings ev", ["evaluation"]),
        ("ttrl comp", ["compare"]),
    ],
)
def test_the_shell_completes(words: str, completed: list[str]) -> None:
    script = "import sys; sys.argv = ['ttrl']; from ttrl.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env={
            "_TTRL_COMPLETE": "complete_bash",
            "COMP_WORDS": words,
            "COMP_CWORD": str(len(words.split()) - 1),
            "PYTHONPATH": os.pathsep.join(sys.path),
        },
    )
    assert done.stdout.split() == completed


def test_without_arguments_there_is_help(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, out, err = call(capsys, monkeypatch)
    assert "Begin with: ttrl train tiny-arithmetic" in out + err


def test_a_run_in_the_place_of_a_recipe(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    make_run(tmp_path / "r", [], summary={"steps": 3, "stopped": None})
    run = str(tmp_path / "r")
    code, _, err = call(capsys, monkeypatch, "train", run)
    assert (
        code == 2
        and f"by --resume, or start another run from its weights, with --model {run}/model" in err
    )
    code, _, err = call(capsys, monkeypatch, "train", "--resume", run, "--run-dir", "elsewhere")
    assert code == 2 and "these are two folders" in err
    code, _, err = call(capsys, monkeypatch, "train", "--resume", run)
    assert code == 2 and f"the run in {run} is finished" in err and "--set epochs=14" in err
    code, out, _ = call(
        capsys, monkeypatch, "train", "--resume", run, "--set", "seed=7", "--dry-run"
    )
    assert code == 0 and "seed = 7" in out


def test_help_names_recipes_and_models() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ttrl.cli", "train", "--help"],
        capture_output=True,
        text=True,
        check=True,
        env={"COLUMNS": "200", "PATH": ""},
    )
    assert "tiny-arithmetic" in done.stdout
    assert "qwen2.5-math-7b" in done.stdout
