"""``ttrl eval --select``: sampled, from a file, from a run, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from command_line import call
from runs import make_run

from ttrl.report.results import load_results
from ttrl.report.rollouts import RecordedAnswer, RecordedGroup, sampled_line
from ttrl.reward_models import Reduction
from ttrl.rollout.engines.recorded import tokens_of
from ttrl.selection.scores import rewards
from ttrl.types import Completion, CompletionGroup, FinishReason, Question, UserError
from ttrl.types.top_logprobs import TopLogprobs

FEW = ("--recipe", "tiny-arithmetic", "--set", "evaluation.samples=6", "--set", "threads=1")
FEW += (
    "--set",
    "selection.draws=20",
    "--set",
    "selection.window=4",
    "--set",
    "selection.warm_up=3",
)
PROMPT = "What is 12 + 34?\nAnswer:\n"
ALL = "majority,weighted,best-of-n,borda,self-certainty,deepconf,reflection"
Ttrl = Callable[..., tuple[int, str, str]]


@pytest.fixture
def ttrl(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Ttrl:
    """``ttrl ...`` in a folder with two questions and a reward model."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    rows = [
        {"prompt": f"What is {a} + {b}?", "answer": str(a + b)} for a, b in ((12, 34), (20, 21))
    ]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "own.py").write_text(
        "def short(prompt, solution):\n    return [0.5, 1 / (1 + len(solution))]\n"
    )

    def one_line(*words: str) -> tuple[int, str, str]:
        code, out, err = call(capsys, monkeypatch, *words)
        return code, " ".join(out.split()), err

    return one_line


def test_one_set_of_samples_serves_every_rule(ttrl: Ttrl) -> None:
    words = (
        "eval",
        "tiny-base",
        "q.jsonl",
        *FEW,
        "--select",
        ALL,
        "--reward-model",
        "own.py:short",
    )
    words += ("--set", "reflection.tokens=32", "--set", "reflection.summary_tokens=0")
    code, out, err = ttrl(*words, "--save-samples", "s.jsonl", "--json", "a.json")
    assert code == 0, err
    assert "right, in %, of so many answers" in out
    assert "Certainty is of the 20 likeliest of 258 tokens" in out
    (result,) = load_results(Path("a.json"))
    chosen = result.selection
    assert chosen is not None
    assert [curve.name for curve in chosen.curves] == ALL.split(",")
    assert [curve.name for curve in chosen.stops] == ["vote", "deepconf"]
    assert [p.answers for p in chosen.curves[0].points] == [1, 2, 4, 6]
    majority = chosen.curves[0].points[-1]
    assert majority.accuracy.value == result.mean("maj@6").value
    reflected = chosen.curves[-1].points
    assert reflected[0].tokens < reflected[-1].tokens > majority.tokens  # its replies, too
    # The same again without sampling, but for what the policy is asked.
    code, _, err = ttrl(*words, "--from-samples", "s.jsonl", "--json", "b.json")
    assert code == 0, err
    (again,) = load_results(Path("b.json"))
    assert again.selection == chosen


def test_rules_that_need_nothing_sample_nothing(ttrl: Ttrl) -> None:
    line = {
        "question": first_id(ttrl),
        "prompt": "What is 12 + 34?\nAnswer:\n",
        "completions": [
            {"text": text, "tokens": tokens, "finish_reason": "stop"}
            for text, tokens in (
                (r"\boxed{46}", 8),
                ("", 1),
                (r"\boxed{45}", 8),
                (r"\boxed{46}", 8),
            )
        ],
    }
    Path("old.jsonl").write_text(json.dumps(line) + "\n")
    words = ("eval", "tiny-base", "q.jsonl", *FEW, "--from-samples", "old.jsonl", "--select")
    options = ("--reward-model", "own.py:short", "--json", "a.json")
    options += ("--set", "reward_model.reduce=mean")
    code, out, err = ttrl(*words, "majority,best-of-n", *options)
    assert code == 0, err
    assert "Tokens that the reward model reads are not counted" in out
    (result,) = load_results(Path("a.json"))
    assert result.selection is not None
    majority, best = result.selection.curves
    assert majority.points[-1].accuracy.value == 1.0
    assert majority.points[-1].accuracy.low is None  # of one question
    assert majority.points[0].tokens == 25 / 4
    assert best.points[-1].accuracy.value == 0.0  # all are equally short: the tie goes to 45
    code, _, err = ttrl(*words, "deepconf")
    assert code == 2
    assert "the answers do not say how sure the model was of their tokens" in err
    code, _, err = ttrl(*words, "reflection")
    assert code == 2
    assert "sample them again with --save-samples" in err


class Steps:
    """A reward model that gives the same scores of steps to each solution."""

    step = "\n"

    def __init__(self, *scores: float) -> None:
        self.given = scores

    def scores(self, question: Question, solutions: Sequence[str]) -> list[tuple[float, ...]]:
        return [self.given for _ in solutions]


@pytest.mark.parametrize(
    ("how", "expected"), [("last", 0.8), ("min", 0.5), ("product", 0.4), ("mean", 0.65)]
)
def test_the_scores_of_steps_become_one(how: Reduction, expected: float) -> None:
    group = RecordedGroup("q", "p", (RecordedAnswer("a", 1, False), RecordedAnswer("b", 1, False)))
    questions = {"q": Question("q", "p", (1,))}
    found = rewards(group, Steps(0.5, 0.8), questions, how)
    assert found.tolist() == pytest.approx([expected] * 2)
    with pytest.raises(UserError, match="expected a finite score for each of 2 solutions"):
        rewards(group, Steps(0.5, float("nan")), questions, "last")


def test_the_settings_say_how_the_scores_of_steps_become_one(ttrl: Ttrl) -> None:
    """46 has 0.9 and 0.2, 45 has 0.1 and 0.8: 46 is better but for its last step."""
    Path("steps.py").write_text(
        "def score(prompt, solution):\n    return [0.9, 0.2] if '46' in solution else [0.1, 0.8]\n"
    )
    answers = [
        {"text": rf"\boxed{{{x}}}", "tokens": 8, "finish_reason": "stop"} for x in (46, 45, 45)
    ]
    line = {"question": first_id(ttrl), "prompt": PROMPT, "completions": answers}
    Path("three.jsonl").write_text(json.dumps(line) + "\n")
    words = ("eval", "tiny-base", "q.jsonl", *FEW, "--from-samples", "three.jsonl")
    words += ("--select", "best-of-n", "--reward-model", "steps.py:score")
    found = {}
    for how in ("last", "mean"):
        code, _, err = ttrl(*words, "--json", f"{how}.json", "--set", f"reward_model.reduce={how}")
        assert code == 0, err
        (result,) = load_results(Path(f"{how}.json"))
        assert result.selection is not None
        found[how] = result.selection.curves[0].points[-1].accuracy.value
    assert found == {"last": 0.0, "mean": 1.0}


def first_id(ttrl: Ttrl) -> str:
    ttrl("eval", "tiny-base", "q.jsonl", *FEW, "--save-samples", "id.jsonl")
    found: str = json.loads(Path("id.jsonl").read_text().splitlines()[0])["question"]
    return found


def completion(answer: str, confidence: float) -> Completion:
    top = TopLogprobs.of([((0, 1), (-confidence + 0.5, -confidence - 0.5))] * 3)
    text = rf"\boxed{{{answer}}}"
    return Completion((1, 2, 3), (-0.5,) * 3, text, FinishReason.STOP, top_logprobs=top)


def test_the_answers_of_a_run_have_what_was_noted_beside_them(ttrl: Ttrl, tmp_path: Path) -> None:
    """Of 46, 45, 45 the first is surer than both together: 3 against 1 + 1.5."""
    group = CompletionGroup(
        Question(first_id(ttrl), "What is 12 + 34?\nAnswer:\n", (1,)),
        (completion("46", 3.0), completion("45", 1.0), completion("45", 1.5)),
        0,
    )
    make_run(tmp_path / "run", [])
    (tmp_path / "run" / "rollouts").mkdir()
    files = tmp_path / "run" / "rollouts" / "step_00001"
    files.with_suffix(".jsonl").write_text(json.dumps(sampled_line(group)) + "\n")
    files.with_suffix(".safetensors").write_bytes(tokens_of([group]))
    words = ("eval", "tiny-base", "q.jsonl", *FEW, "--from-samples", "run", "--json", "a.json")
    code, _, err = ttrl(*words, "--select", "majority,deepconf")
    assert code == 0, err
    (result,) = load_results(Path("a.json"))
    assert result.selection is not None
    majority, deepconf = (curve.points[-1].accuracy.value for curve in result.selection.curves)
    assert (majority, deepconf) == (0.0, 1.0)
    files.with_suffix(".safetensors").unlink()
    code, _, err = ttrl(*words[:-2], "--select", "deepconf")
    assert code == 2
    assert "the rules of --select need the tokens of run: --from-samples" in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--select", "majoriti"), "'majoriti' is unknown (did you mean 'majority'?)"),
        (("--select", "weighted"), "needs the scores of a reward model: add --reward-model NAME"),
        (("--select", "weighted", "--reward-model", "qwen"), "'qwen' is unknown"),
        (("--select", "majority", "--reward-model", "own.py:short"), "would be ignored"),
        (("--reward-model", "own.py:short"), "would be ignored without --select"),
        (("--select", "weighted", "--reward-model", "own.py:no", "--set", "evaluation.samples=2"),
         "defines no no"),
        (("--select", "deepconf", "--set", "evaluation.top_p=0.9"), "evaluation.top_p = 0.9"),
        (("--select", "weighted", "--reward-model", "own.py:short", "--ranks", "2"),
         "scores in one process"),
        (("--select", "reflection", "--recipe", "tiny-agents"),
         '--select reflection asks the policy as in training with reward.labels = "reflection"'),
    ],
)  # fmt: skip
def test_what_cannot_be_chosen_by(options: tuple[str, ...], message: str, ttrl: Ttrl) -> None:
    code, _, err = ttrl("eval", "tiny-base", "q.jsonl", *FEW, *options)
    assert code == 2
    assert message in err


def test_results_hold_no_answers(ttrl: Ttrl) -> None:
    code, _, err = ttrl("eval", "a.json", "q.jsonl", "--select", "majority")
    assert code == 2
    assert "--select chooses among answers, and a.json has scores" in err


def test_too_few_answers_to_stop_early_are_said(ttrl: Ttrl) -> None:
    words = ("eval", "tiny-base", "q.jsonl", *FEW, "--set", "selection.warm_up=6")
    code, out, err = ttrl(*words, "--select", "deepconf")
    assert code == 0, err
    assert "deepconf stops early after selection.warm_up = 6 answers, and there are 6" in out
    assert "deepconf, early" not in out


def test_a_reward_model_is_loaded_before_anything_is_sampled(
    ttrl: Ttrl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ttrl.evaluation.measuring.open_pool", pytest.fail)
    words = ("eval", "tiny-base", "q.jsonl", *FEW, "--select", "best-of-n")
    code, _, err = ttrl(*words, "--reward-model", "own.py:no")
    assert code == 2 and "own.py defines no no" in err


@pytest.mark.parametrize(
    ("tokens", "likeliest", "rules", "message"),
    [
        ([1, 1], [2, 3], "majority,borda", "of the 2 likeliest tokens of each place and of the 3"),
        ([1, 1], [2, 3], "deepconf", "which do not compare"),
        ([0, 0], None, "majority", "no answer has a token"),
    ],
)
def test_answers_that_do_not_compare(
    tokens: list[int], likeliest: list[int] | None, rules: str, message: str, ttrl: Ttrl
) -> None:
    said = [{"text": "46", "tokens": n, "finish_reason": "stop"} for n in tokens]
    for one, k in zip(said, likeliest or (), strict=False):
        one["confidence"] = {"likeliest": k, "certainty": 0.5, "tokens": [0.5]}
    line = {"question": "line-1", "prompt": "What is 12 + 34?\nAnswer:\n", "completions": said}
    Path("s.jsonl").write_text(json.dumps(line) + "\n")
    words = ("eval", "tiny-base", "q.jsonl", *FEW, "--from-samples", "s.jsonl")
    code, _, err = ttrl(*words, "--select", rules)
    assert (code, message in err) == (2, True), err
