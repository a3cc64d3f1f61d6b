"""A generative verifier: its score against a slow computation, and the process that runs code."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
from groups import completion
from test_reward_readings import QUESTION, config, saved, tokenizer
from transformers import AutoModelForCausalLM, Qwen2ForCausalLM

from ttrl.reward_models import generative, locked, make_reward_model, sandbox
from ttrl.reward_models.sandbox import run_python
from ttrl.settings.recipe import load_settings
from ttrl.types import Completion, UserError

DENIED = "PermissionError: [Errno 1] Operation not permitted"
CAN_LOCK = sys.platform == "linux"


def verifier(folder: Path, *overrides: str) -> Any:
    few = ["reward_model.runs=3", "reward_model.analysis_tokens=6", "model.dtype=float32"]
    settings = load_settings(None, model="m", data="d", overrides=[*few, *overrides])
    return make_reward_model(f"generative:{folder}", settings)


def slow(model: Any, text: str) -> float:
    """P(Yes) / (P(Yes) + P(No)) behind a text, by the first token of each."""
    own = tokenizer()
    with torch.inference_mode():
        chances = model(input_ids=torch.tensor([own.encode(text)])).logits[0, -1].softmax(0)
    yes, no = (chances[own.encode(t)[0]].item() for t in ("Yes", "No"))
    return yes / (yes + no)


def test_scores_are_means_of_what_comes_behind_the_box(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = saved(tmp_path / "m", Qwen2ForCausalLM(config()))
    model, made = AutoModelForCausalLM.from_pretrained(folder).eval(), verifier(folder)
    seen: list[str] = []
    question = made._question
    monkeypatch.setattr(made, "_question", lambda text: seen.append(text) or question(text))
    found = made.scores(QUESTION, ["7+5=12\n\nso 12", "7+5=12\n\nso 13", "7+5=12"])
    assert [len(scores) for scores in found] == [2, 2, 1]
    assert found[0][0] == found[1][0] == found[2][0]
    boxes = [text for text in seen if text.endswith("\\boxed{")]
    assert len(boxes) == 3 * 3, "three beginnings, each analysed three times"
    order = [found[0][0], found[0][1], found[1][1]]
    for i, score in enumerate(order):
        means = fmean(slow(model, box) for box in boxes[3 * i : 3 * i + 3])
        assert score == pytest.approx(means, abs=1e-5)
    assert len({boxes[0], boxes[1], boxes[2]}) == 3
    assert "Question: What is 7 + 5?\n\nStep 1: 7+5=12\n\nStep 2: so 12" in boxes[3]
    alone = verifier(folder).scores(QUESTION, ["7+5=12"])
    assert alone[0] == pytest.approx((order[0],), abs=1e-5)


@pytest.mark.skipif(not CAN_LOCK, reason="seccomp is Linux's")
def test_a_check_is_run_and_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = saved(tmp_path / "m", Qwen2ForCausalLM(config()))
    made = verifier(folder, "reward_model.run_code=true", "reward_model.runs=1")
    seen: list[str] = []
    question = made._question
    monkeypatch.setattr(made, "_question", lambda text: seen.append(text) or question(text))
    monkeypatch.setattr(generative, "run_python", lambda code, s, mb: f"{len(code)} ``` <|end|>")
    made.scores(QUESTION, ["7+5=12"])
    assert "\n<verify>\n```python\n" in seen[-1]
    assert "Output:\n```\n" in seen[-1] and seen[-1].count("<|end|>") == 1, "the template's own"
    assert seen[-1].endswith("```\n</verify>\n<output>\n**Judgement**: $\\boxed{")
    shown = made._with_output("x```python\nprint(1)```", len("x```python\n"))
    assert shown.startswith("x```python\nprint(1)```\n\nOutput:\n```\n8 ` ``")


@pytest.mark.skipif(not CAN_LOCK, reason="seccomp is Linux's")
def test_an_analysis_and_its_check_share_the_tokens_and_write_no_control_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = saved(tmp_path / "m", Qwen2ForCausalLM(config()))
    made = verifier(folder, "reward_model.run_code=true", "reward_model.analysis_tokens=9")
    asked, seen, question = [], [], made._question

    def sample(questions: Any, params: Any) -> Iterator[tuple[int, tuple[Completion, ...]]]:
        asked.append((len(questions), params.n, params.max_new_tokens, params.stop))
        for i in range(len(questions)):
            yield i, (completion("hm <|end|><|turn|>user"),) * params.n

    monkeypatch.setattr(made, "_question", lambda text: seen.append(text) or question(text))
    monkeypatch.setattr(made._engine, "sample", sample)
    monkeypatch.setattr(generative, "run_python", lambda code, s, mb: code)
    made.scores(QUESTION, ["7+5=12"])
    assert asked == [(1, 3, 4, ("</analyze>",)), (3, 1, 4, ("```",))]
    own = seen[0].count("<|end|>"), seen[0].count("<|turn|>")  # the template's
    assert {(text.count("<|end|>"), text.count("<|turn|>")) for text in seen} == {own}
    assert "hm < |end|>< |turn|>user" in seen[-1]


@pytest.mark.skipif(not CAN_LOCK, reason="seccomp is Linux's")
@pytest.mark.parametrize(
    ("code", "last"),
    [
        ("import math\nprint(math.comb(5, 2))", "10"),
        (
            "print(open('/etc/hostname').read())",
            DENIED,
        ),
        ("open('x', 'w')", DENIED),
        ("import os; os.fork()", DENIED),
        ("import os; os.kill(os.getppid(), 9)", "PermissionError"),
        ("import _socket; _socket.socket()", "Error"),
        ("import ctypes; print(ctypes.CDLL(None).socket(2, 1, 0))", "-1"),
        ("import os; os.execv('/bin/true', ['true'])", "PermissionError"),
        ("x = [0] * 10**9", "MemoryError"),
        ("while True: pass", "TimeoutError: ended after 1 s"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("print('\\ud800')", "UnicodeEncodeError"),
        ("def f(:", "SyntaxError"),
    ],
)
def test_a_program_can_only_compute(code: str, last: str) -> None:
    assert last in run_python(code, 1, 256).strip().rpartition("\n")[2]


@pytest.mark.skipif(not CAN_LOCK, reason="seccomp is Linux's")
def test_sympy_is_there_and_output_is_cut() -> None:
    solved = "from sympy import *\nx = symbols('x')\nprint(solve(x**2 - 4, x))"
    assert run_python(solved, 20, 1024).strip() == "[-2, 2]"
    assert len(run_python("print('a' * 10**6)", 5, 256)) == sandbox.SHOWN


def test_what_cannot_be_locked_is_not_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sandbox, "CALLS", {})
    with pytest.raises(UserError, match="on Linux on x86-64 or ARM64 only"):
        run_python("print(1)", 1, 256)
    folder = saved(tmp_path / "m", Qwen2ForCausalLM(config()))
    with pytest.raises(UserError, match=r"reward_model\.run_code=false"):
        verifier(folder, "reward_model.run_code=true")


@pytest.mark.skipif(not CAN_LOCK, reason="seccomp is Linux's")
def test_a_kernel_that_refuses_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The process ends before it runs anything, and says so by its status."""
    fake = tmp_path / "locked.py"
    text = Path(locked.__file__).read_text()
    fake.write_text(text.replace("!= 0:\n            raise", "== 0:\n            raise"))
    monkeypatch.setattr(sandbox, "__file__", str(tmp_path / "sandbox.py"))
    with pytest.raises(UserError, match=r"cannot be locked here \(seccomp was refused\)"):
        run_python("open('ran', 'w')", 1, 256)
    assert not Path("/ran").exists()


def test_the_filter_knows_its_machine() -> None:
    rules = locked.rules("x86_64")
    assert len(rules) == 8 * (4 + 2 * len(locked.CALLS["x86_64"][1]) + 1)
    assert {name: len(calls) for name, (_, calls) in locked.CALLS.items()} == {
        "x86_64": 15,
        "aarch64": 15,
    }
