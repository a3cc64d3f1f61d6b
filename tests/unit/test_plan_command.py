"""``ttrl plan`` on the command line."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from command_line import call
from plans import CONFIGS

from ttrl.models.pretrained import load_bare_outline
from ttrl.plan import ModelShape
from ttrl.settings import ModelSettings
from ttrl.types import UserError


def plan_command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str
) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of ``ttrl plan ...`` on a wide screen, without network."""
    monkeypatch.setenv("COLUMNS", "140")
    return call(capsys, monkeypatch, "plan", *arguments)


def test_the_command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    output = tmp_path / "plan.json"
    arguments = [
        "8xa100-40gb/qwen2.5-math-7b", "--gpus", "8", "--gpu-memory", "40",
        "--model-config", str(CONFIGS / "qwen2.5-math-7b.json"),
    ]  # fmt: skip
    code, out, err = plan_command(capsys, monkeypatch, *arguments, "--json", str(output))
    assert (code, err) == (0, "")
    assert "7.616 B parameters, 56 KiB" in out
    assert re.search(r"^ moments +7\.09 +7\.09 +7\.09 *$", out, re.MULTILINE)
    written = json.loads(output.read_text())
    assert written["fits"]
    assert written["phases"]["loss"]["moments"] == 8 * 7_615_616_512 // 8
    few = ("--gpus", "2", "--set", "rollout.tensor_parallel=1")
    code, out, err = plan_command(capsys, monkeypatch, *arguments, *few)
    assert code == 1
    assert "GiB on each GPU" in out
    assert err.startswith("ttrl: does not fit: load needs ")
    assert err.count("\n") == 1


def test_the_embedded_model_fits_anything(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, _ = plan_command(capsys, monkeypatch, "tiny-arithmetic", "--gpu-memory", "8")
    assert code == 0
    assert "local, transformers" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model-config", "no.json"], "no.json: there is no such file"),
        (["--model-config", "list.json"], "holds no settings"),
        (["--model-config", "remote.json"], "names code on the hub"),
        (["--machine", "tflop=1"], "did you mean 'tflops'?"),
        (["--json", "no/such/x.json"], "no folder no/such"),
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
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "remote.json").write_text('{"model_type": "qwen2", "attn_implementation": "a/b"}')
    code, out, err = plan_command(capsys, monkeypatch, "8xa100-40gb/qwen2.5-math-7b", *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


def test_a_model_with_experts_is_refused(tmp_path: Path) -> None:
    config = {
        "model_type": "qwen3_moe", "hidden_size": 32, "intermediate_size": 64, "vocab_size": 50,
        "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2,
        "num_experts": 4, "moe_intermediate_size": 16,
    }  # fmt: skip
    path = tmp_path / "moe.json"
    path.write_text(json.dumps(config))
    with pytest.raises(UserError, match="only models without experts"):
        ModelShape.of(load_bare_outline(ModelSettings(path=str(path))))


def test_a_model_that_cannot_be_loaded_needs_no_more_than_its_config(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    code, _, err = plan_command(
        capsys, monkeypatch, "aime24", "--model", str(tmp_path), "--gpus", "1", "--gpu-memory", "80"
    )
    assert code == 2
    assert err.endswith(". For a plan its config.json is enough: --model-config FILE\n")
