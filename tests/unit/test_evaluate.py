"""Scores of scripted answers, by hand."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations
from pathlib import Path
from statistics import fmean

import pytest
import torch
from rich.console import Console
from runs import make_run

from ttrl.answers import default_grader, extract_answer
from ttrl.data.questions import QuestionSet
from ttrl.evaluation.evaluation import Evaluation
from ttrl.evaluation.measuring import read_samples
from ttrl.evaluation.scoring import score_groups
from ttrl.report.display import Display
from ttrl.report.rollouts import RecordedAnswer, RecordedGroup, recorded_line
from ttrl.rollout.pool import RolloutPool
from ttrl.rollout.sampling import SamplingParams
from ttrl.settings.recipe import load_settings
from ttrl.types import AnswerKey, Completion, FinishReason, Question, UserError

ANSWERS = {"a": ["1", "1", "2", "1.0"], "b": ["3", None, "4", "4"], "c": ["9"] * 4}


class Scripted:
    """An engine that gives `ANSWERS`; the texts of abstentions are cut off."""

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        raise AssertionError("nothing to load")

    def sample(
        self, questions: Sequence[Question], params: SamplingParams
    ) -> Iterator[tuple[int, tuple[Completion, ...]]]:
        for i in reversed(range(len(questions))):
            yield i, tuple(_completion(a) for a in ANSWERS[questions[i].id])


def _completion(answer: str | None) -> Completion:
    if answer is None:
        return Completion((1, 2, 3, 4), (-1.0,) * 4, r"\boxed{", FinishReason.LENGTH)
    return Completion((1, 2), (-1.0,) * 2, rf"so \boxed{{{answer}}}", FinishReason.STOP)


@pytest.fixture
def questions() -> list[Question]:
    return [Question(i, i, (1,)) for i in ANSWERS]


QUIET = Display(Console(file=io.StringIO()))


def evaluation(
    questions: Sequence[Question], key: AnswerKey, ks: tuple[int, ...], *overrides: str
) -> Evaluation:
    settings = load_settings("tiny-arithmetic", overrides=["evaluation.samples=4", *overrides])
    asked = QuestionSet(tuple(questions), key, ())
    return Evaluation(settings, extract_answer, default_grader(), "d", asked, ks)


PARAMS = SamplingParams(n=4, temperature=1.0, max_new_tokens=4)


def test_scores_by_hand(questions: list[Question]) -> None:
    key = AnswerKey({"a": "1", "b": "3"}, {"a": "easy", "b": "hard", "c": "hard"})
    seen: list[str] = []
    scores = evaluation(questions, key, ks=(1, 2, 4)).run(
        RolloutPool(Scripted()), 0, QUIET, on_group=lambda g: seen.append(g.question.id)
    )
    scores = scores.flat()
    assert seen == ["b", "a"]  # c has no reference answer and is not sampled
    assert scores["pass@1"] == pytest.approx((3 / 4 + 1 / 4) / 2)
    assert scores["pass@2"] == pytest.approx((1 + 3 / 6) / 2)
    assert scores["pass@4"] == 1
    assert scores["maj@4"] == pytest.approx((1 + 0) / 2)
    assert scores["abstention_share"] == scores["truncated_share"] == pytest.approx(1 / 8)
    assert scores["response_tokens"] == pytest.approx((2 * 7 + 4) / 8)
    assert scores["pass@1/level=easy"] == pytest.approx(3 / 4)
    assert scores["maj@4/level=hard"] == 0
    assert "maj@1" not in scores


def test_without_answers_there_are_no_scores(questions: list[Question]) -> None:
    result = evaluation(questions, AnswerKey(), ks=(1,)).run(RolloutPool(Scripted()), 0, QUIET)
    assert result.questions == ()
    assert result.flat() == {}


def test_groups_keep_the_order_of_the_questions(questions: list[Question]) -> None:
    groups = RolloutPool(Scripted()).sample(questions, PARAMS)
    assert [g.question.id for g in groups] == ["a", "b", "c"]
    assert [g.policy_version for g in groups] == [0, 0, 0]


class Greedy(Scripted):
    """Gives one answer, right for "a" only, when the most probable one is asked for."""

    def __init__(self) -> None:
        self.asked: list[SamplingParams] = []

    def sample(
        self, questions: Sequence[Question], params: SamplingParams
    ) -> Iterator[tuple[int, tuple[Completion, ...]]]:
        self.asked.append(params)
        if params.temperature > 0:
            yield from super().sample(questions, params)
        for i in range(len(questions) if params.temperature == 0 else 0):
            yield i, (_completion("1"),)


def test_the_most_probable_answer_is_scored_beside_the_samples(questions: list[Question]) -> None:
    engine, key = Greedy(), AnswerKey({"a": "1", "b": "3"})
    asked = evaluation(questions, key, (1,), "evaluation.greedy=true", "evaluation.top_p=0.5")
    result = asked.run(RolloutPool(engine), 0, QUIET)
    assert [(p.n, p.temperature, p.top_p) for p in engine.asked] == [(1, 0.0, 1.0), (4, 1.0, 0.5)]
    assert [q.scores["greedy"] for q in result.questions] == [1.0, 0.0]
    assert [q.scores["pass@1"] for q in result.questions] == [0.75, 0.25]


@pytest.mark.parametrize("right", range(6))
def test_pass_at_k_is_the_share_of_all_draws(right: int) -> None:
    answers = ["7"] * right + ["8"] * (5 - right)
    group = RecordedGroup(
        "q", "p", tuple(RecordedAnswer(rf"\boxed{{{a}}}", 1, False) for a in answers)
    )
    (scored,) = score_groups(
        [group], AnswerKey({"q": "7"}), range(1, 6), extract_answer, default_grader()
    )
    for k in range(1, 6):
        draws = [float("7" in draw) for draw in combinations(answers, k)]
        assert scored.scores[f"pass@{k}"] == pytest.approx(fmean(draws))


def test_more_than_was_recorded_cannot_be_estimated() -> None:
    group = RecordedGroup("q", "p", (RecordedAnswer("x", 1, False),) * 3)
    with pytest.raises(
        UserError, match=r"question 'q' has 3 answers, too few for pass@4.*--k to 3"
    ):
        score_groups([group], AnswerKey({"q": "7"}), (1, 4), extract_answer, default_grader())


def test_of_a_run_each_questions_last_answers_count(
    questions: list[Question], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    make_run(run, [])
    (run / "rollouts").mkdir()
    for step, asked in ((1, {"a": "1", "b": "3"}), (2, {"a": "2", "other": "7"})):
        lines = [
            recorded_line(RecordedGroup(q, q, (RecordedAnswer(rf"\boxed{{{said}}}", 1, False),)))
            for q, said in asked.items()
        ]
        path = run / "rollouts" / f"step_{step:05d}.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    asked = evaluation(questions, AnswerKey({"a": "1", "b": "3", "c": "9"}), ks=(1,))
    file = io.StringIO()
    groups = read_samples(run, asked, Display(Console(file=file, width=200)))
    result = asked.score(groups, None, sampling={})
    assert [(q.id, q.scores["pass@1"]) for q in result.questions] == [("a", 0.0), ("b", 1.0)]
    assert "no answers to 1 of the 3 questions of d: they are left out" in file.getvalue()


def test_of_a_file_of_several_data_sets_each_reads_its_own(
    questions: list[Question], tmp_path: Path
) -> None:
    groups = [
        RecordedGroup("a", "a", (RecordedAnswer(said, 1, False),), data=data)
        for data, said in (("d", r"\boxed{1}"), ("e", r"\boxed{2}"))
    ]
    path = tmp_path / "s.jsonl"
    path.write_text("".join(json.dumps(recorded_line(group)) + "\n" for group in groups))
    asked = evaluation(questions, AnswerKey({"a": "1"}), ks=(1,))
    assert read_samples(path, asked, QUIET) == groups[:1]
