"""Samples no more than a rule needs to choose: stopped by votes, or by confidence as in DeepConf.

What it chooses and spends is what `ttrl.selection.stopping` finds by replaying whole answers in the
order of the samples; here the others are not sampled.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ttrl.evaluation.evaluation import Evaluation
from ttrl.report.display import Display
from ttrl.report.results import EvaluationResult, QuestionScores
from ttrl.report.rollouts import RecordedAnswer, RecordedGroup
from ttrl.rewards.vote import is_settled, majority_vote
from ttrl.rollout.pool import RolloutPool
from ttrl.rollout.sampling import ConfidenceFloor, SamplingParams
from ttrl.selection.candidates import NONE, Candidates
from ttrl.selection.confidence import confidence
from ttrl.selection.scores import tokens_of
from ttrl.selection.stopping import ConfidentVotes, GroupConfidences, Stopped
from ttrl.settings import Settings
from ttrl.types import Completion, FinishReason, Question, UserError


@dataclass(frozen=True, slots=True)
class Ended:
    """How the sampling of a question has ended."""

    question: str
    """Its id."""
    stopped: Stopped
    """What was chosen, and what it took."""
    right: float
    """1 if the answer chosen is right."""
    whole_tokens: float
    """Mean length of its answers that came to their end, of those that were sampled anyway."""


def sample_until_decided(
    evaluation: Evaluation, pool: RolloutPool, display: Display
) -> list[Ended]:
    """Sample in rounds, until no further votes could change who wins; all ranks together."""
    extract, grader = evaluation.extract, evaluation.grader

    def decided(completions: Sequence[Completion], remaining: int) -> bool:
        vote = majority_vote([extract(c.text) for c in completions], grader)
        return is_settled(vote.counts, remaining)

    asked = evaluation.answerable
    with display.bar(f"deciding: {evaluation.name}", len(asked)) as bar:
        groups = pool.sample(asked, evaluation.sampling(0), lambda group: bar.advance(), decided)
    found = []
    for group in groups:
        candidates = _read(evaluation, RecordedGroup.of(group))
        counts_C = np.bincount(candidates.class_N[candidates.class_N != NONE])
        chosen = int(counts_C.argmax()) if len(counts_C) else NONE
        tokens = float(candidates.tokens_N.sum())
        stopped = Stopped(chosen, len(candidates), tokens)
        found.append(_ended(candidates, stopped, tokens / len(candidates)))
    return found


def sample_while_confident(
    evaluation: Evaluation, pool: RolloutPool, display: Display
) -> list[Ended]:
    """Sample the warm-up, then answers that are broken off at low confidence; all ranks together.

    See `ttrl.selection.stopping.stopped_by_confidence`, which this does.

    Raises:
        UserError: if the answers do not say how sure the model was of their tokens.
    """
    settings, params = evaluation.settings.selection, evaluation.sampling(0)
    warm = settings.warm_up
    asked = [_Asked(question, evaluation) for question in evaluation.answerable]
    by_id = {one.question.id: one for one in asked}

    def ask(some: Sequence[_Asked], part: SamplingParams) -> None:
        for group in pool.sample([one.question for one in some], part):
            by_id[group.question.id].hear(group.completions)

    with display.bar(f"deciding: {evaluation.name}", len(asked)) as bar:
        ask(asked, replace(params, n=warm))
        left = asked
        for first in range(warm, params.n, settings.at_once):
            begun, left = left, [one for one in left if not one.votes.agree]
            for _ in range(len(begun) - len(left)):
                bar.advance()
            if not left:
                break
            floor = ConfidenceFloor(
                settings.window, {one.question.id: one.votes.least for one in left}
            )
            count = min(settings.at_once, params.n - first)
            ask(left, replace(params, first=first, n=count, floor=floor))
    return [one.ended(warm) for one in asked]


class _Asked:
    """A question, and what was said to it so far.

    What was heard is read once: the classes of answers depend on which answers there are, and not
    on how often each was given, so they are looked at again when a new one comes.
    """

    votes: ConfidentVotes[str]

    def __init__(self, question: Question, evaluation: Evaluation) -> None:
        self.question, self._evaluation = question, evaluation
        self._recorded: list[RecordedAnswer] = []
        self._heard: list[tuple[str | None, float, float]] = []
        """The answer, its lowest group and its confidence."""
        self._names: Mapping[str, str] = {}
        """Each different answer's class; "" if it has no content."""

    def hear(self, completions: Sequence[Completion]) -> None:
        """Take further answers, and count their votes; one that was broken off says nothing."""
        begun, selection = len(self._heard), self._evaluation.settings.selection
        for c in completions:
            unsure = c.finish_reason is FinishReason.UNSURE
            recorded = RecordedAnswer.of(replace(c, text="") if unsure else c)
            self._recorded.append(recorded)
            tokens = tokens_of(recorded)
            lowest = GroupConfidences(tokens, selection.window).lowest
            answer = self._evaluation.extract(recorded.text)
            self._heard.append((answer, lowest, confidence(tokens, selection)))
        said = {answer for answer, _, _ in self._heard[begun:] if answer is not None}
        if begun == 0 or not said <= self._names.keys():
            self._names = self._evaluation.grader.classes(said | self._names.keys()).name_of
            warm = self._heard[: selection.warm_up]
            self.votes = ConfidentVotes([lowest for _, lowest, _ in warm], selection)
            begun = 0
        for answer, lowest, sure in self._heard[begun:]:
            if answer is not None and (name := self._names[answer]):
                self.votes.count(name, lowest, sure)

    def ended(self, warm: int) -> Ended:
        """Read all of it, as a replay does, and say what is chosen."""
        group = RecordedGroup(self.question.id, self.question.prompt, tuple(self._recorded))
        candidates, leading = _read(self._evaluation, group), set(self.votes.leading)
        chosen = [
            int(place)
            for place, (answer, _, _) in zip(candidates.class_N, self._heard, strict=True)
            if answer is not None and self._names[answer] in leading
        ]
        tokens_N = candidates.tokens_N
        stopped = Stopped(min(chosen, default=NONE), len(tokens_N), float(tokens_N.sum()))
        return _ended(candidates, stopped, float(tokens_N[:warm].mean()))


ONLINE: dict[str, Callable[[Evaluation, RolloutPool, Display], list[Ended]]] = {
    "majority": sample_until_decided,
    "deepconf": sample_while_confident,
}
"""Rules that need not see all answers -> what samples no more than they need."""


def stop_early(
    rule: str, evaluation: Evaluation, pool: RolloutPool, display: Display, model: str
) -> EvaluationResult:
    """Sample as a rule of `ONLINE` needs, and return what it chose, question by question.

    Scores are "right", the "answers" that were begun, the "tokens" sampled, and the tokens that all
    answers would have taken, if they are as long as those that came to their end ("expected").
    """
    levels, most = evaluation.asked.key.levels, evaluation.settings.evaluation.samples
    questions = tuple(
        QuestionScores(
            end.question,
            {
                "right": end.right,
                "answers": float(end.stopped.answers),
                "tokens": end.stopped.tokens,
                "expected": most * end.whole_tokens,
            },
            levels.get(end.question),
        )
        for end in ONLINE[rule](evaluation, pool, display)
    )
    return EvaluationResult(model, evaluation.name, evaluation.how, questions, stopped_early=rule)


def refuse_long_warm_up(settings: Settings) -> None:
    """Raise a UserError if DeepConf's warm-up were all answers, and nothing could be stopped."""
    warm, samples = settings.selection.warm_up, settings.evaluation.samples
    if samples <= warm:
        raise UserError(
            f"--stop-early: selection.warm_up = {warm} answers are sampled to their end, and "
            f"evaluation.samples = {samples}: expected more samples, or a shorter warm-up"
        )


def _read(evaluation: Evaluation, group: RecordedGroup) -> Candidates:
    reference = evaluation.asked.key.answers[group.question]
    return Candidates.of(group, reference, evaluation.extract, evaluation.grader)


def _ended(candidates: Candidates, stopped: Stopped, whole_tokens: float) -> Ended:
    right = candidates.right(np.array([stopped.chosen]))
    return Ended(candidates.question, stopped, float(right[0]), whole_tokens)
