"""`ttrl eval --stop-early` samples and chooses what the replay of whole answers finds."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from command_line import call
from rich.console import Console

from ttrl.answers import default_grader
from ttrl.evaluation.evaluation import Evaluation
from ttrl.evaluation.measuring import load_evaluation
from ttrl.models.pretrained import load_tokenizer
from ttrl.report.display import Display
from ttrl.report.results import load_results
from ttrl.report.rollouts import RecordedAnswer, RecordedGroup
from ttrl.rollout.pool import RolloutPool, make_pool
from ttrl.selection.candidates import Candidates
from ttrl.selection.online import ONLINE, Ended
from ttrl.selection.scores import confidences, tokens_of
from ttrl.selection.stopping import GroupConfidences, stopped_by_confidence, stopped_by_vote
from ttrl.settings.recipe import load_settings
from ttrl.types import Completion, CompletionGroup

QUIET = Display(Console(file=io.StringIO()))
SAMPLES = 24
PAIRS = ((3, 4), (12, 34), (47, 85), (659, 747), (8, 1), (20, 21))
COMMON = ("threads=1", f"evaluation.samples={SAMPLES}", "evaluation.greedy=false")
COMMON += ("selection.window=6", "selection.warm_up=8")


def evaluation_of(folder: Path, *changes: str) -> Evaluation:
    data = folder / "q.jsonl"
    rows = [
        {"id": f"{a}+{b}", "prompt": f"What is {a} + {b}?", "answer": str(a + b)} for a, b in PAIRS
    ]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = load_settings(
        "tiny-arithmetic", model="tiny-base", data=str(data), overrides=[*COMMON, *changes]
    )
    return replace(load_evaluation(settings, default_grader(), QUIET), noted=20)


@pytest.fixture(scope="module")
def pool() -> RolloutPool:
    settings = load_settings("tiny-arithmetic", overrides=["threads=1"])
    return make_pool(settings, load_tokenizer(settings.model))


Heard = dict[str, list[Completion]]
"""What was sampled for each question, in the order of the samples."""


class Counting:
    """A pool that keeps what it has sampled."""

    def __init__(self, pool: RolloutPool) -> None:
        self.pool = pool
        self.groups: list[CompletionGroup] = []

    def sample(self, *words: object, **more: object) -> list[CompletionGroup]:
        found: list[CompletionGroup] = self.pool.sample(*words, **more)  # type: ignore[arg-type]
        self.groups += found
        return found

    @property
    def heard(self) -> Heard:
        found: Heard = {}
        for group in self.groups:
            found.setdefault(group.question.id, []).extend(group.completions)
        return found

    @property
    def tokens(self) -> int:
        return sum(len(c.token_ids) for g in self.groups for c in g.completions)


def replayed(
    evaluation: Evaluation, whole: list[CompletionGroup], heard: Heard, rule: str
) -> dict[str, tuple[object, ...]]:
    """What stopping finds in all answers, in the order of the samples.

    Of tokens that were sampled twice the second confidence counts: in another batch its last digit
    may be another, and then votes that nearly agree would end sampling elsewhere.
    """
    settings, found = evaluation.settings, {}
    for group in whole:
        recorded = RecordedGroup.of(group)
        answers = list(recorded.answers)
        for i, c in enumerate(heard[group.question.id]):
            first, of_all = RecordedAnswer.of(c).confidence, answers[i].confidence
            assert first is not None and of_all is not None
            assert np.allclose(first.tokens, of_all.tokens[: len(first.tokens)], rtol=0, atol=3e-4)
            tokens = first.tokens + of_all.tokens[len(first.tokens) :]
            answers[i] = replace(answers[i], confidence=replace(of_all, tokens=tokens))
        recorded = replace(recorded, answers=tuple(answers))
        reference = evaluation.asked.key.answers[group.question.id]
        c = Candidates.of(recorded, reference, evaluation.extract, evaluation.grader)
        order = np.arange(len(c))
        if rule == "majority":
            end = stopped_by_vote(c, order)
        else:
            c = c.scored("confidence", confidences(recorded, settings))
            watched = [
                GroupConfidences(tokens_of(a), settings.selection.window) for a in recorded.answers
            ]
            end = stopped_by_confidence(c, watched, order, settings.selection)
        right = float(c.right(np.array([end.chosen]))[0])
        found[c.question] = (right, end.answers, end.tokens)
    return found


def online(evaluation: Evaluation, pool: Counting, rule: str) -> list[Ended]:
    return ONLINE[rule](evaluation, pool, QUIET)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("rule", "changes"),
    [
        ("majority", ()),
        ("deepconf", ()),
        ("deepconf", ("selection.warm_up_keep=0.4", "selection.consensus=1.0")),
        ("deepconf", ("selection.warm_up_keep=0.2", "selection.confidence=lowest")),
        ("deepconf", ("selection.warm_up_keep=0.5", "selection.at_once=5")),
        ("deepconf", ("selection.window=500", "selection.consensus=0.6")),
    ],
)
def test_it_chooses_and_takes_what_the_replay_does(
    rule: str, changes: tuple[str, ...], tmp_path: Path, pool: RolloutPool
) -> None:
    evaluation = evaluation_of(tmp_path, *changes)
    counting = Counting(pool)
    ends = online(evaluation, counting, rule)
    found = {e.question: (e.right, e.stopped.answers, e.stopped.tokens) for e in ends}
    whole = pool.sample(evaluation.answerable, evaluation.sampling(0))
    assert found == replayed(evaluation, whole, counting.heard, rule)
    assert counting.tokens == sum(e.stopped.tokens for e in ends)
    assert counting.tokens < sum(len(c.token_ids) for g in whole for c in g.completions)


def test_what_is_broken_off_is_the_beginning_of_the_whole_answer(
    tmp_path: Path, pool: RolloutPool
) -> None:
    evaluation = evaluation_of(tmp_path, "selection.warm_up_keep=0.3", "selection.consensus=1.0")
    counting = Counting(pool)
    online(evaluation, counting, "deepconf")
    whole = {g.question.id: g for g in pool.sample(evaluation.answerable, evaluation.sampling(0))}
    reasons = [str(c.finish_reason) for g in counting.groups for c in g.completions]
    for question, completions in counting.heard.items():
        for c, longer in zip(completions, whole[question].completions, strict=False):
            assert longer.token_ids[: len(c.token_ids)] == c.token_ids
            if c.finish_reason != "unsure":
                assert c.token_ids == longer.token_ids
    assert set(reasons) == {"stop", "unsure"}
    assert set(reasons[: 8 * len(PAIRS)]) == {"stop"}  # the warm-up


def test_the_same_file_is_sampled_alike_wherever_it_lies(tmp_path: Path, pool: RolloutPool) -> None:
    texts = []
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        evaluation = evaluation_of(tmp_path / folder)
        groups = pool.sample(evaluation.answerable, evaluation.sampling(0))
        texts.append([c.token_ids for g in groups for c in g.completions])
    assert texts[0] == texts[1]
    other = replace(evaluation, name="other.jsonl")
    groups = pool.sample(other.answerable, other.sampling(0))
    assert texts[0] != [c.token_ids for g in groups for c in g.completions]


def test_each_answer_is_read_twice_however_many_follow(tmp_path: Path, pool: RolloutPool) -> None:
    """Once when it comes, and once at the end, as a replay reads all of them."""
    evaluation = evaluation_of(tmp_path, "selection.consensus=1.0", "selection.warm_up_keep=1.0")
    read: list[str] = []

    def extract(text: str) -> str | None:
        read.append(text)
        return evaluation.extract(text)

    ends = online(replace(evaluation, extract=extract), Counting(pool), "deepconf")
    answers = sum(end.stopped.answers for end in ends)
    assert answers > 12 * len(PAIRS) and len(read) == 2 * answers


Ttrl = Callable[..., tuple[int, str, str]]


@pytest.fixture
def ttrl(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Ttrl:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    evaluation_of(tmp_path)
    settings = [word for change in COMMON for word in ("--set", change)]

    def one_line(*words: str) -> tuple[int, str, str]:
        base = ("eval", "tiny-base", "q.jsonl", "--recipe", "tiny-arithmetic", *settings)
        code, out, err = call(capsys, monkeypatch, *base, *words)
        return code, " ".join(out.split()), err

    return one_line


@pytest.mark.parametrize("rule", ONLINE)
def test_the_command_says_what_was_chosen_and_saved(rule: str, ttrl: Ttrl) -> None:
    code, out, err = ttrl("--select", rule, "--stop-early", "--json", "found.json")
    assert code == 0, err
    (result,) = load_results(Path("found.json"))
    assert result.stopped_early == rule
    means = {name: result.mean(name).value for name in result.names}
    assert means["answers"] <= SAMPLES and means["tokens"] < means["expected"]
    assert f"{rule}, stopped early" in out
    saved = 100 * (1 - means["tokens"] / means["expected"])
    assert f"{means['answers']:.1f} of 24 answers were begun per question" in out
    assert f"{saved:.1f} % of the tokens saved" in out
    code, _, err = ttrl("--against", "found.json")
    assert code == 2 and "are of --stop-early, and have no scores to compare" in err
    assert "deciding" not in err and "measuring" not in err  # it is seen before hours of sampling


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "expected --select majority or deepconf, got no --select"),
        (("--select", "majority,deepconf"), "got --select majority,deepconf"),
        (("--select", "borda"), "other rules choose when all answers are there"),
        (("--select", "majority", "--save-samples", "s.jsonl"), "not go with --save-samples"),
        (("--select", "majority", "--from-samples", "s.jsonl"), "not go with --from-samples"),
        (("--select", "majority", "--k", "4"), "does not go with --k"),
        (
            ("--select", "deepconf", "--set", "selection.warm_up=24"),
            "selection.warm_up = 24 answers are sampled to their end, and evaluation.samples = 24",
        ),
        (("--select", "deepconf", "--set", "evaluation.top_p=0.9"), "evaluation.top_p=1.0"),
    ],
)
def test_what_cannot_work_is_refused(words: tuple[str, ...], said: str, ttrl: Ttrl) -> None:
    code, _, err = ttrl("--stop-early", *words)
    assert code == 2
    assert said in " ".join(err.split())
