"""Test-time reinforcement learning, from top to bottom (TTRL, arXiv 2504.16084).

A step samples many answers to a few unlabeled questions, lets them vote, rewards those that agree
with the majority, and moves the policy towards them:

    questions -> groups -> estimates -> samples -> update

Reference answers, where a data set has them, go to `Exam` and `labelled_metrics` only. Both
return numbers to be written down and nothing else, so training with the answers removed or
shuffled gives the same weights, bit for bit (tests/e2e/test_labels.py). The one exception must be
asked for twice: ``reward.labels = "ground_truth"`` with ``reward.allow_ground_truth``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import fields, replace
from pathlib import Path
from statistics import fmean

import torch
from transformers import PreTrainedTokenizerBase

from ttrl.answers import Grader
from ttrl.config import Settings
from ttrl.data.order import QuestionOrder
from ttrl.data.questions import QuestionSet, load_questions, overlap
from ttrl.evaluate import Exam, Scores
from ttrl.guard import CollapseGuard, Keeper
from ttrl.metrics import labelled_metrics, vote_metrics
from ttrl.policy.local import LocalPolicy, learning_rate
from ttrl.policy.model import load_policy_model
from ttrl.pretrained import load_tokenizer
from ttrl.rewards.judge import Judge, in_background
from ttrl.rewards.labels import (
    Labels,
    LabelSource,
    OwnVotes,
    ReferenceAnswers,
    Teacher,
)
from ttrl.rewards.selection import select
from ttrl.rollout.pool import RolloutPool, make_pool
from ttrl.rollout.recorded import RecordedEngine
from ttrl.rollout.sampling import SamplingParams
from ttrl.rollout.vllm_engine import require_vllm
from ttrl.tracking import Display, RunFolder, Summary
from ttrl.types import (
    AnswerKey,
    CompletionGroup,
    Estimate,
    Question,
    UpdateResult,
    UserError,
    WeightSource,
)


def train(
    settings: Settings, folder: RunFolder, display: Display, replay: Path | None = None
) -> Summary:
    """Train as ``settings`` say, in a new ``folder``; returns what ``summary.json`` holds.

    With ``replay``, the ``rollouts`` folder of a run, its votes are trained on again: nothing is
    sampled, so nothing is measured before and after either.

    Raises:
        UserError: for what the user can put right about settings, model, data or folder. The
            folder is made only after all of them have been read.
    """
    folder.refuse_existing()
    with Grader(settings.answers) as grader:
        trainer = Trainer(settings, display, Judge(settings, grader), replay)
        with closing(trainer.pool):
            folder.create(settings)
            return trainer.run(folder)


class Trainer:
    """One run: all that can be wrong with it is found when it is made."""

    def __init__(
        self, settings: Settings, display: Display, judge: Judge, replay: Path | None
    ) -> None:
        """Read model and data, and start the engine, which is then at the model's weights."""
        self.started = time.perf_counter()
        self.settings, self.display, self.judge = settings, display, judge
        make_repeatable(settings)
        refuse_impossible(settings, replay)
        self.tokenizer = load_tokenizer(settings.model)
        self.train_set, self.exams = load_data(settings, self.tokenizer, judge, display)
        questions = self.train_set.questions
        self.order = QuestionOrder(questions, settings.rollout.questions_per_step, settings.seed)
        self.total = total_steps(settings, self.order)
        self.policy = LocalPolicy(load_policy_model(settings.model), settings)
        if replay is None:
            self.pool = make_pool(settings, self.tokenizer, empty=True)
            self.pool.refresh(self.policy)
            verify(settings, self.pool, self.policy, questions)
        else:
            self.pool = RolloutPool(RecordedEngine(replay))
            self.pool.refresh(self.policy)
            self.exams = ()  # they are not recorded
        self.labels = self._label_source()
        self.guard = CollapseGuard(settings.guard, self.order.steps_per_epoch)
        stopping = settings.guard.on_collapse == "stop"
        self.keeper = Keeper(self.policy, self.order.steps_per_epoch) if stopping else None

    def run(self, folder: RunFolder) -> Summary:
        """Train, measure before and after, and write everything down."""
        self.display.note(f"kernels: {self.policy.kernels}")
        every = self.settings.evaluation.every
        stopped: str | None = None
        with self.display.training(self.total):
            before = after = self._measure(0)
            for step in range(1, self.total + 1):
                groups, estimates, metrics = self._train(step)
                stopped = self._watch(step, metrics)
                self.pool.refresh(self.policy)
                if stopped or step == self.total or (every and step % every == 0):
                    after = self._measure(step)
                    metrics |= exam_metrics(after)
                folder.add_step(step, groups, estimates, metrics)
                self.display.step(step, self.total, metrics)
                if stopped:
                    break
        folder.save_model(self.policy.model, self.tokenizer)
        summary = {
            "before": before.get("train", {}),
            "after": after.get("train", {}),
            "held_out": {"before": before.get("held_out", {}), "after": after.get("held_out", {})},
            "steps": step,
            "stopped": stopped,
            "kernels": self.policy.kernels,
            "wall_s": time.perf_counter() - self.started,
        }
        folder.write_summary(summary)
        return summary

    def _train(self, step: int) -> tuple[list[CompletionGroup], list[Estimate], dict[str, float]]:
        """One step: what was sampled, what it was worth, and what there is to say of both."""
        settings, judge, key = self.settings, self.judge, self.train_set.key
        begun = time.perf_counter()
        questions = self.order.take(step)
        labels = self.labels.take(questions, step)
        groups, estimates = self._sample_and_judge(questions, labels, step)
        sampled = time.perf_counter()
        samples, trained = select(groups, estimates, settings, step)
        self.pool.sleep()
        try:
            rate = learning_rate(step, self.total, settings.policy)
            updates = self.policy.update(samples, rate)
        except FloatingPointError as error:
            raise UserError(f"step {step}: {error}; lower policy.learning_rate") from error
        self.labels.follow(self.policy)
        updated = time.perf_counter()
        metrics = {
            "step": step,
            **vote_metrics(groups, estimates, judge.history, judge.grader, trained),
            **labelled_metrics(groups, estimates, key, judge.grader, trained),
            **update_metrics(updates),
            "time/rollout_s": sampled - begun,
            "time/update_s": updated - sampled,
        }
        judge.remember(step, groups, estimates)
        return groups, estimates, metrics

    def _sample_and_judge(
        self, questions: Sequence[Question], labels: Labels, step: int
    ) -> tuple[list[CompletionGroup], list[Estimate]]:
        """The step's groups and their estimates, judged while others are still being sampled."""
        judge = self.judge
        with (
            self.display.bar(f"step {step}: sampling", len(questions)) as bar,
            in_background(lambda group: judge.estimate(group, labels, step)) as (submit, judged),
        ):

            def done(group: CompletionGroup) -> None:
                submit(group)
                shares = [f.result().vote.share for f in list(judged.values()) if f.done()]
                bar.advance(f"majority ratio {fmean(shares):.2f}" if shares else "")

            decided = judge.decided if self.settings.rollout.stop_when_decided else None
            params = voting(self.settings, "rollout", step)
            groups = self.pool.sample(questions, params, done, decided)
            return groups, [judged[g.question.id].result() for g in groups]

    def _watch(self, step: int, metrics: dict[str, float]) -> str | None:
        """Look for a collapse; why the run must stop, if it must, with the weights restored."""
        sign = self.guard.sign(metrics)
        metrics["guard/collapse"] = float(sign is not None)
        if sign is not None and self.guard.is_new:
            self.display.note(f"step {step}: warning: looks like a collapse: {sign}")
        if self.keeper is None:
            return None
        if sign is None:
            self.keeper.after_step(self.policy, step)
            return None
        kept = self.keeper.restore(self.policy)
        self.display.note(f"stopped; the model is that of step {kept}")
        return f"step {step}: {sign}; the model is that of step {kept}"

    def _measure(self, step: int) -> dict[str, Scores]:
        """The exams' scores by name."""
        return {exam.name: exam.take(self.pool, step, self.display) for exam in self.exams}

    def _label_source(self) -> LabelSource:
        """What ``reward.labels`` asks for; a teacher starts from the policy's present weights."""
        match self.settings.reward.labels:
            case "votes":
                return OwnVotes()
            case "teacher":
                return Teacher(self.policy, self.settings.reward.teacher_decay, self._elect)
            case "ground_truth":
                return ReferenceAnswers(self.train_set.key)

    def _elect(
        self, teacher: WeightSource, questions: Sequence[Question], step: int
    ) -> dict[str, str | None]:
        """A teacher's majorities; the pool is at the policy's weights again afterwards."""
        self.pool.refresh(teacher)
        with self.display.bar(f"step {step}: teacher", len(questions)) as bar:
            params = voting(self.settings, "teacher", step)
            groups = self.pool.sample(questions, params, lambda group: bar.advance())
        self.pool.refresh(self.policy)
        return {group.question.id: self.judge.vote(group).majority for group in groups}


def refuse_impossible(settings: Settings, replay: Path | None) -> None:
    """Raise a UserError for what would fail only after a model has been loaded."""
    if replay is not None and settings.reward.labels == "teacher":
        raise UserError(
            '--replay: a teacher\'s answers are not recorded (reward.labels = "teacher")'
        )
    if replay is None and settings.rollout.engine == "vllm":
        require_vllm()


def make_repeatable(settings: Settings) -> None:
    """The same settings on the same machine give the same bits.

    Sums in another order differ in the last bit, and one bit can change a sampled token; so the
    number of threads is a setting, and operations without a fixed order are refused by torch.
    """
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(settings.seed)


def load_data(
    settings: Settings, tokenizer: PreTrainedTokenizerBase, judge: Judge, display: Display
) -> tuple[QuestionSet, tuple[Exam, ...]]:
    """The training questions, and the exams: on them, and on held-out questions (maybe none)."""
    train_set = load_questions(settings.data.train, settings.data, tokenizer)
    held_out = QuestionSet((), AnswerKey(), ())
    if settings.data.held_out is not None:
        held_out = load_questions(settings.data.held_out, settings.data, tokenizer)
    display.rejected((*train_set.rejected, *held_out.rejected))
    if shared := overlap(train_set, held_out):
        display.note(
            f"warning: {len(shared)} of {len(held_out.questions)} held-out questions are also "
            f"trained on, for example {shared[0]!r}"
        )
    ks = (1, settings.evaluation.samples)
    return train_set, (
        Exam(settings, judge.extract, judge.grader, "train", train_set, ks),
        Exam(settings, judge.extract, judge.grader, "held_out", held_out, ks),
    )


def total_steps(settings: Settings, order: QuestionOrder) -> int:
    """Steps of the run: whole epochs, unless ``max_steps`` is less."""
    steps = settings.epochs * order.steps_per_epoch
    return steps if settings.max_steps is None else min(steps, settings.max_steps)


def voting(settings: Settings, *stream: int | str) -> SamplingParams:
    """How votes are sampled, with random numbers of their own for each ``stream``."""
    rollout = settings.rollout
    return SamplingParams(
        n=rollout.votes,
        temperature=rollout.temperature,
        max_new_tokens=rollout.max_new_tokens,
        stream=(settings.seed, *stream),
    )


def verify(
    settings: Settings, pool: RolloutPool, policy: LocalPolicy, questions: Sequence[Question]
) -> None:
    """Raise a UserError unless the pool's engine computes the policy's own log-probs."""
    params = replace(voting(settings, "verify"), n=2)
    params = replace(params, max_new_tokens=min(32, params.max_new_tokens))
    pool.verify(policy, questions[:4], params, settings.model.dtype)


def update_metrics(updates: Sequence[UpdateResult]) -> dict[str, float]:
    """The step's optimizer steps as ``policy/...``: means, but sums of counts and the largest gap.

    None were taken where unanimous votes left nothing to learn: then only the count 0 is there.
    """
    metrics: dict[str, float] = {"policy/updates": len(updates)}
    if updates:
        combine: dict[str, Callable[[list[float]], float]] = {
            "tokens": sum,
            "sequences": sum,
            "skipped_sequences": sum,
            "sampler_max_gap": max,
        }
        for name in (f.name for f in fields(UpdateResult) if f.name != "seconds"):
            values = [getattr(update, name) for update in updates]
            metrics[f"policy/{name}"] = combine.get(name, fmean)(values)
    return metrics


def exam_metrics(results: Mapping[str, Scores]) -> dict[str, float]:
    """The scores of the exams as ``exam/NAME/...``."""
    return {
        f"exam/{exam}/{name}": value
        for exam, scores in results.items()
        for name, value in scores.items()
    }
