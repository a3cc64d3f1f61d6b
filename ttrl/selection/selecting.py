"""Choosing among the answers of an evaluation by every rule that was asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from ttrl.evaluation.evaluation import Evaluation
from ttrl.models.pretrained import load_outline
from ttrl.report.display import Display
from ttrl.report.results import EvaluationResult
from ttrl.report.rollouts import RecordedGroup
from ttrl.report.selection import Curve, Selection
from ttrl.reward_models import RewardModel, make_reward_model
from ttrl.rollout.engines.vllm_engine import MOST_NOTED
from ttrl.rollout.pool import RolloutPool
from ttrl.selection.candidates import Candidates, Floats
from ttrl.selection.curves import Subsets
from ttrl.selection.online import refuse_long_warm_up, stop_early
from ttrl.selection.reflecting import Reflecting
from ttrl.selection.rules import RULES, Rule
from ttrl.selection.scores import certainties, confidences, known, rewards, tokens_of
from ttrl.selection.stopping import GroupConfidences, stopped_by_confidence, stopped_by_vote
from ttrl.settings import Settings
from ttrl.system.ranks import Ranks
from ttrl.types import Question, UserError


@dataclass(frozen=True)
class Selecting:
    """Which rules choose, and what they are given."""

    rules: Sequence[Rule]
    reward_model: str | None = None
    """Its name; None: no rule reads rewards."""
    model: RewardModel | None = None
    """The model of that name, once it is loaded."""
    stop_early: bool = False
    """Whether the one rule that there is samples for itself, and no more than it needs."""

    @property
    def reads(self) -> set[str]:
        """What the rules need beside the answers."""
        return {rule.reads for rule in self.rules if rule.reads is not None}

    @property
    def asks_policy(self) -> bool:
        """Whether a rule needs the policy."""
        return "policy" in self.reads

    @property
    def overrides(self) -> list[str]:
        """Settings that let a rule's own be set and checked, as where a run has such labels."""
        return ["reward.labels=reflection"] if self.asks_policy else []

    @property
    def of_tokens(self) -> bool:
        """Whether a rule reads what was known of each token when it was sampled."""
        return bool(self.reads - {"reward"})

    def loaded(self, settings: Settings, display: Display) -> Selecting:
        """Return the same with its reward model: it is loaded before hours of sampling.

        Raises:
            UserError: if it cannot be.
        """
        if self.reward_model is None:
            return self
        display.note(f"reward model: {self.reward_model}")
        return replace(self, model=make_reward_model(self.reward_model, settings))

    def noting(self, evaluation: Evaluation) -> Evaluation:
        """Let an evaluation that samples note the likeliest tokens, if a rule needs them.

        Raises:
            UserError: if it would not sample from all tokens, or the engine notes fewer.
        """
        if not self.reads & {"certainty", "confidence"}:
            return evaluation
        settings = evaluation.settings
        if self.stop_early:
            refuse_long_warm_up(settings)
        names = ",".join(r.name for r in self.rules if r.reads in ("certainty", "confidence"))
        if settings.evaluation.top_p < 1:
            raise UserError(
                f"--select {names} needs how probable each token was among all of them, and with "
                f"evaluation.top_p = {settings.evaluation.top_p:g} the improbable ones have "
                "probability 0: add --set evaluation.top_p=1.0"
            )
        asked = settings.selection.top_logprobs
        if settings.rollout.engine == "vllm" and asked > MOST_NOTED:
            raise UserError(
                f"selection.top_logprobs = {asked}: expected at most {MOST_NOTED} with "
                'rollout.engine = "vllm"'
            )
        return replace(evaluation, noted=asked)

    def online(
        self, evaluation: Evaluation, pool: RolloutPool, display: Display, model: str
    ) -> EvaluationResult:
        """Sample as far as the rule needs, and return what it chose; all ranks together."""
        (rule,) = self.rules
        return stop_early(rule.name, evaluation, pool, display, model)

    def select(
        self,
        evaluation: Evaluation,
        groups: Sequence[RecordedGroup],
        numbers: Sequence[int],
        display: Display,
        pool: RolloutPool | None,
        ranks: Ranks,
    ) -> Selection:
        """Choose among the answers, and say how often what is chosen is right.

        Args:
            evaluation: the questions, and their key.
            groups: answers to them; of conversations, those to the question by itself are chosen
                among.
            numbers: of how many answers to choose.
            display: what takes long is shown here.
            pool: the policy, for rules that ask it; all ranks together.
            ranks: all ranks.

        Raises:
            UserError: if the answers lack what a rule needs, or the reward model fails.
        """
        settings, key = evaluation.settings, evaluation.asked.key
        questions = {q.id: q for q in evaluation.asked.questions}
        groups = [replace(group, answers=group.alone) for group in groups]
        _refuse_no_tokens(groups)
        if self.reads & {"certainty", "confidence"}:
            _refuse_different_likeliest(groups)
        candidates = [
            Candidates.of(g, key.answers[g.question], evaluation.extract, evaluation.grader)
            for g in groups
        ]
        notes = []
        for name, scores_of in self._scorers(settings, questions).items():
            with display.bar(f"scoring: {name}", len(groups)) as bar:
                for i, group in enumerate(groups):
                    candidates[i] = candidates[i].scored(name, scores_of(group))
                    bar.advance()
        subsets = Subsets(candidates, settings.selection, settings.seed)
        curves = [
            subsets.curve(rule, numbers)
            if rule.choose is not None
            else self._reflected(rule, subsets, evaluation, groups, numbers, display, pool, ranks)
            for rule in self.rules
        ]
        if "certainty" in self.reads:
            notes.append(_certainty_note(groups, settings))
        warm_up = settings.selection.warm_up
        if RULES["deepconf"] in self.rules and subsets.most <= warm_up:
            notes.append(
                f"deepconf stops early after selection.warm_up = {warm_up} answers, and there are "
                f"{subsets.most}: nothing is replayed."
            )
        if "reward" in self.reads:
            notes.append("Tokens that the reward model reads are not counted.")
        return Selection(
            answers=subsets.most,
            tokens_per_answer=float(subsets.tokens_Q.mean()),
            curves=tuple(curves),
            stops=tuple(self._stops(subsets, groups, settings)),
            notes=tuple(notes),
        )

    def _scorers(
        self, settings: Settings, questions: Mapping[str, Question]
    ) -> dict[str, Callable[[RecordedGroup], Floats]]:
        """Return how each score that a rule reads is computed of a group."""
        found: dict[str, Callable[[RecordedGroup], Floats]] = {}
        if "certainty" in self.reads:
            found["certainty"] = certainties
        if "confidence" in self.reads:
            found["confidence"] = partial(confidences, settings=settings)
        if "reward" in self.reads:
            assert self.model is not None  # see `refuse_without_model` and `loaded`
            how = settings.reward_model.reduce
            found["reward"] = partial(rewards, model=self.model, questions=questions, how=how)
        return found

    def _reflected(
        self,
        rule: Rule,
        subsets: Subsets,
        evaluation: Evaluation,
        groups: Sequence[RecordedGroup],
        numbers: Sequence[int],
        display: Display,
        pool: RolloutPool | None,
        ranks: Ranks,
    ) -> Curve:
        """Ask the policy to choose from the first answers to each question, as many as asked."""
        if pool is None:
            raise ValueError(f"{rule.name} asks the policy, and there is none")
        if any(answer.surprisal is None for g in groups for answer in g.answers):
            raise UserError(
                f"--select {rule.name} shows the policy the solution of each answer that it was "
                "surest of, and these answers do not say how sure it was: sample them again with "
                "--save-samples"
            )
        reflecting = Reflecting(
            evaluation.settings, evaluation.extract, evaluation.grader, pool, ranks
        )
        questions = {q.id: q for q in evaluation.asked.questions}
        points = []
        with display.bar(f"choosing: {rule.name}", len(numbers)) as bar:
            for n in numbers:
                right_Q, replies_Q = reflecting.chosen(questions, groups, evaluation.asked.key, n)
                own_Q = np.array([c.tokens_N[:n].sum() for c in subsets.candidates])
                points.append(subsets.point(right_Q, n, own_Q + replies_Q))
                bar.advance()
        return Curve(rule.name, tuple(points))

    def _stops(
        self, subsets: Subsets, groups: Sequence[RecordedGroup], settings: Settings
    ) -> list[Curve]:
        """Replay the ways to stop early that belong to the rules."""
        selection, found = settings.selection, []
        if RULES["majority"] in self.rules:
            found.append(subsets.stops("vote", stopped_by_vote))
        if RULES["deepconf"] in self.rules and subsets.most > selection.warm_up:
            watched = {
                g.question: [GroupConfidences(tokens_of(a), selection.window) for a in g.answers]
                for g in groups
            }
            found.append(
                subsets.stops(
                    "deepconf",
                    lambda c, order_N: stopped_by_confidence(
                        c, watched[c.question], order_N, selection
                    ),
                )
            )
        return found


def _refuse_no_tokens(groups: Sequence[RecordedGroup]) -> None:
    if not any(answer.tokens for group in groups for answer in group.answers):
        raise UserError(
            "no answer has a token, so no two rules can be compared at equal tokens: expected the "
            "length of each answer in its field tokens"
        )


def _refuse_different_likeliest(groups: Sequence[RecordedGroup]) -> None:
    """Raise a UserError if confidences are of different numbers of tokens: they do not compare."""
    noted = sorted({known(answer).likeliest for group in groups for answer in group.answers})
    if len(noted) > 1:
        raise UserError(
            f"the answers' confidences are of the {noted[0]} likeliest tokens of each place and of "
            f"the {noted[-1]}, which do not compare: sample all with one selection.top_logprobs"
        )


def _certainty_note(groups: Sequence[RecordedGroup], settings: Settings) -> str:
    """Say whether the certainty is that of its paper."""
    noted = known(groups[0].answers[0]).likeliest
    vocabulary = load_outline(settings.model).config.get_text_config().vocab_size
    if noted >= vocabulary:
        return f"Certainty is of all {vocabulary} tokens at each place: self-certainty itself."
    return (
        f"Certainty is of the {noted} likeliest of {vocabulary} tokens at each place, with their "
        f"mass as 1; self-certainty is of all (selection.top_logprobs = {vocabulary})."
    )
