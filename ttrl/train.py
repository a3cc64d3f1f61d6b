"""Test-time reinforcement learning, from top to bottom (TTRL, arXiv 2504.16084).

A step samples many answers to a few unlabeled questions, lets them vote, rewards those that agree
with the majority, and moves the policy towards them:

    questions -> groups -> estimates -> samples -> update

Reference answers, where a data set has them, go to `Exam` and `labelled_metrics` only. Both
return numbers to be written down and nothing else, so training with the answers removed or
shuffled gives the same weights, bit for bit (tests/e2e/test_labels.py).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import fields
from statistics import fmean

import torch
from transformers import PreTrainedTokenizerBase

from ttrl.answers import Grader
from ttrl.config import Settings
from ttrl.data.order import QuestionOrder
from ttrl.data.questions import QuestionSet, load_questions, overlap
from ttrl.evaluate import Exam, Scores
from ttrl.guard import CollapseGuard
from ttrl.metrics import labelled_metrics, vote_metrics
from ttrl.policy.local import LocalPolicy, learning_rate
from ttrl.policy.model import load_policy_model
from ttrl.pretrained import load_tokenizer
from ttrl.rewards.judge import Judge, in_background
from ttrl.rewards.labels import Labels, Teacher
from ttrl.rewards.selection import select
from ttrl.rollout.pool import RolloutPool, make_pool
from ttrl.rollout.sampling import SamplingParams
from ttrl.tracking import Display, RunFolder, Summary
from ttrl.types import AnswerKey, CompletionGroup, Estimate, Question, UpdateResult, UserError


def train(settings: Settings, folder: RunFolder, display: Display) -> Summary:
    """Train as ``settings`` say, in a new ``folder``; returns what ``summary.json`` holds.

    Raises:
        UserError: for what the user can put right about settings, model, data or folder. The
            folder is made only after all of them have been read.
    """
    folder.refuse_existing()
    with Grader(settings.answers) as grader:
        return _train(settings, folder, display, Judge(settings, grader))


def _train(settings: Settings, folder: RunFolder, display: Display, judge: Judge) -> Summary:
    started = time.perf_counter()
    make_repeatable(settings)
    tokenizer = load_tokenizer(settings.model)
    train_set, exams = load_data(settings, tokenizer, judge.grader, display)
    order = QuestionOrder(train_set.questions, settings.rollout.questions_per_step, settings.seed)
    total = total_steps(settings, order)
    policy = LocalPolicy(load_policy_model(settings.model), settings)
    pool = make_pool(settings, tokenizer)
    labels = LabelSource(settings, policy, pool, judge, train_set.key)
    guard = CollapseGuard(settings.guard, order.steps_per_epoch)
    keeper = Keeper(policy, order.steps_per_epoch) if settings.guard.on_collapse == "stop" else None
    folder.create(settings)
    display.note(f"kernels: {policy.kernels}")

    collapsed: str | None = None
    with display.training(total):
        pool.refresh(policy)
        before = after = [exam.take(pool, 0, display) for exam in exams]
        for step in range(1, total + 1):
            begun = time.perf_counter()
            questions = order.take(step)
            elected = labels.take(questions, step, display)
            groups, estimates = sample_and_judge(
                pool, questions, settings, step, judge, elected, display
            )
            sampled = time.perf_counter()
            samples, trained = select(groups, estimates, settings, step)
            try:
                updates = policy.update(samples, learning_rate(step, total, settings.policy))
            except FloatingPointError as error:
                raise UserError(f"step {step}: {error}; lower policy.learning_rate") from error
            labels.follow()
            updated = time.perf_counter()

            metrics = {
                "step": step,
                **vote_metrics(groups, estimates, judge.history, judge.grader, trained),
                **labelled_metrics(groups, estimates, train_set.key, judge.grader, trained),
                **update_metrics(updates),
                "time/rollout_s": sampled - begun,
                "time/update_s": updated - sampled,
            }
            judge.remember(step, groups, estimates)
            collapsed = None if guard.settings.on_collapse == "ignore" else guard.sign(metrics)
            if collapsed is not None:
                display.note(f"step {step}: warning: the run seems to collapse: {collapsed}")
            stop = collapsed is not None and keeper is not None
            if keeper is not None and stop:
                kept = keeper.restore(policy)
                display.note(f"stopped; the model is that of step {kept}")
            elif keeper is not None:
                keeper.after_step(policy, step)
            pool.refresh(policy)
            every = settings.evaluation.every
            if stop or step == total or (every and step % every == 0):
                after = [exam.take(pool, step, display) for exam in exams]
                metrics |= exam_metrics(exams, after)
            folder.add_step(step, groups, estimates, metrics)
            display.step(step, total, metrics)
            if stop:
                break

    folder.save_model(policy.model, tokenizer)
    summary = {
        "before": before[0],
        "after": after[0],
        "held_out": {"before": before[1], "after": after[1]},
        "steps": step,
        **({"stopped": collapsed} if stop else {}),
        "kernels": policy.kernels,
        "wall_s": time.perf_counter() - started,
    }
    folder.write_summary(summary)
    return summary


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
    settings: Settings, tokenizer: PreTrainedTokenizerBase, grader: Grader, display: Display
) -> tuple[QuestionSet, tuple[Exam, Exam]]:
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
        Exam(settings, grader, "train", train_set, ks),
        Exam(settings, grader, "held_out", held_out, ks),
    )


def total_steps(settings: Settings, order: QuestionOrder) -> int:
    """Steps of the run: whole epochs, unless ``max_steps`` is less."""
    steps = settings.epochs * order.steps_per_epoch
    return steps if settings.max_steps is None else min(steps, settings.max_steps)


def voting(settings: Settings, *stream: int | str) -> SamplingParams:
    """How votes are sampled."""
    rollout = settings.rollout
    return SamplingParams(
        n=rollout.votes,
        temperature=rollout.temperature,
        max_new_tokens=rollout.max_new_tokens,
        stream=(settings.seed, *stream),
    )


def sample_and_judge(
    pool: RolloutPool,
    questions: Sequence[Question],
    settings: Settings,
    step: int,
    judge: Judge,
    labels: Labels,
    display: Display,
) -> tuple[list[CompletionGroup], list[Estimate]]:
    """The step's groups and their estimates, judged while others are still being sampled."""
    with (
        display.bar(f"step {step}: sampling", len(questions)) as bar,
        in_background(lambda group: judge.estimate(group, labels, step)) as (submit, judged),
    ):

        def done(group: CompletionGroup) -> None:
            submit(group)
            shares = [f.result().vote.share for f in list(judged.values()) if f.done()]
            bar.advance(f"majority ratio {fmean(shares):.2f}" if shares else "")

        decided = judge.decided if settings.rollout.stop_when_decided else None
        groups = pool.sample(questions, voting(settings, "rollout", step), done, decided)
        return groups, [judged[g.question.id].result() for g in groups]


class LabelSource:
    """``reward.labels``: the voters, a teacher, or the answer key."""

    def __init__(
        self,
        settings: Settings,
        policy: LocalPolicy,
        pool: RolloutPool,
        judge: Judge,
        key: AnswerKey,
    ) -> None:
        """A teacher starts from the policy's present weights."""
        self.settings, self.policy, self.pool, self.judge = settings, policy, pool, judge
        wanted = settings.reward.labels
        self.teacher = (
            Teacher(policy, settings.reward.teacher_decay) if wanted == "teacher" else None
        )
        self.key = key if wanted == "ground_truth" else None  # the settings allow it explicitly

    def take(self, questions: Sequence[Question], step: int, display: Display) -> Labels:
        """The labels of a step's questions; the pool is at the policy's weights again after it."""
        if self.key is not None:
            return {q.id: self.key.answers.get(q.id) for q in questions}
        if self.teacher is None:
            return None

        def sample(asked: Sequence[Question]) -> list[CompletionGroup]:
            assert self.teacher is not None
            self.pool.refresh(self.teacher)
            with display.bar(f"step {step}: teacher", len(asked)) as bar:
                groups = self.pool.sample(
                    asked, voting(self.settings, "teacher", step), lambda group: bar.advance()
                )
            self.pool.refresh(self.policy)
            return groups

        return self.teacher.labels(questions, sample, self.judge.vote)

    def follow(self) -> None:
        """After a step."""
        if self.teacher is not None:
            self.teacher.follow(self.policy)


class Keeper:
    """Keeps weights to go back to: those at the start of this pass, and of the one before.

    Labels that differ between two passes were spoiled during the earlier one.
    """

    def __init__(self, policy: LocalPolicy, steps_per_pass: int) -> None:
        """Keep the weights of step 0."""
        self.steps_per_pass = steps_per_pass
        self.kept = [(0, _copy(policy))]

    def after_step(self, policy: LocalPolicy, step: int) -> None:
        """Keep the weights at the end of a pass; forget those older than two passes."""
        if step % self.steps_per_pass == 0:
            self.kept = [*self.kept[-1:], (step, _copy(policy))]

    def restore(self, policy: LocalPolicy) -> int:
        """Go back to the older of the two; returns its step."""
        step, weights = self.kept[0]
        with torch.no_grad():
            for name, tensor in policy.named_weights():
                tensor.copy_(weights[name])
        return step


def _copy(policy: LocalPolicy) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().cpu().clone() for name, tensor in policy.named_weights()}


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


def exam_metrics(exams: Sequence[Exam], results: Sequence[Scores]) -> dict[str, float]:
    """The scores of the exams as ``exam/NAME/...``."""
    return {
        f"exam/{exam.name}/{name}": value
        for exam, scores in zip(exams, results, strict=True)
        for name, value in scores.items()
    }
