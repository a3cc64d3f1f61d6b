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

from ttrl.config import Settings
from ttrl.data.order import QuestionOrder
from ttrl.data.questions import QuestionSet, load_questions, overlap
from ttrl.evaluate import Exam, Scores
from ttrl.metrics import labelled_metrics, vote_metrics
from ttrl.policy.local import LocalPolicy, learning_rate
from ttrl.policy.model import load_policy_model
from ttrl.pretrained import load_tokenizer
from ttrl.rewards.estimators import RewardEstimator, make_estimator
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
    started = time.perf_counter()
    make_repeatable(settings)
    estimator = make_estimator(settings.reward.estimator)
    tokenizer = load_tokenizer(settings.model)
    train_set, exams = load_data(settings, tokenizer, display)
    order = QuestionOrder(train_set.questions, settings.rollout.questions_per_step, settings.seed)
    total = total_steps(settings, order)
    policy = LocalPolicy(load_policy_model(settings.model), settings)
    pool = make_pool(settings, tokenizer)
    folder.create(settings)
    display.note(f"kernels: {policy.kernels}")

    trained = settings.policy.trained_samples
    labels: dict[str, str | None] = {}  # question id -> its label when it was last asked
    with display.training(total):
        pool.refresh(policy)
        before = after = [exam.take(pool, 0, display) for exam in exams]
        for step in range(1, total + 1):
            begun = time.perf_counter()
            questions = order.take(step)
            groups, estimates = sample_and_vote(pool, questions, settings, step, estimator, display)
            sampled = time.perf_counter()
            samples = select(groups, estimates, settings)
            try:
                updates = policy.update(samples, learning_rate(step, total, settings.policy))
            except FloatingPointError as error:
                raise UserError(f"step {step}: {error}; lower policy.learning_rate") from error
            pool.refresh(policy)
            updated = time.perf_counter()

            metrics = {
                "step": step,
                **vote_metrics(groups, estimates, labels, trained_samples=trained),
                **labelled_metrics(groups, estimates, train_set.key, trained_samples=trained),
                **update_metrics(updates),
                "time/rollout_s": sampled - begun,
                "time/update_s": updated - sampled,
            }
            labels |= {g.question.id: e.label for g, e in zip(groups, estimates, strict=True)}
            every = settings.evaluation.every
            if step == total or (every and step % every == 0):
                after = [exam.take(pool, step, display) for exam in exams]
                metrics |= exam_metrics(exams, after)
            folder.add_step(step, groups, estimates, metrics)
            display.step(step, total, metrics)

    folder.save_model(policy.model, tokenizer)
    summary = {
        "before": before[0],
        "after": after[0],
        "held_out": {"before": before[1], "after": after[1]},
        "steps": total,
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
    settings: Settings, tokenizer: PreTrainedTokenizerBase, display: Display
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
        Exam(settings, "train", train_set, ks),
        Exam(settings, "held_out", held_out, ks),
    )


def total_steps(settings: Settings, order: QuestionOrder) -> int:
    """Steps of the run: whole epochs, unless ``max_steps`` is less."""
    steps = settings.epochs * order.steps_per_epoch
    return steps if settings.max_steps is None else min(steps, settings.max_steps)


def sample_and_vote(
    pool: RolloutPool,
    questions: Sequence[Question],
    settings: Settings,
    step: int,
    estimator: RewardEstimator,
    display: Display,
) -> tuple[list[CompletionGroup], list[Estimate]]:
    """The step's groups and what the estimator makes of them, each voted on as it completes."""
    rollout = settings.rollout
    params = SamplingParams(
        n=rollout.votes,
        temperature=rollout.temperature,
        max_new_tokens=rollout.max_new_tokens,
        stream=(settings.seed, "rollout", step),
    )
    estimates: dict[str, Estimate] = {}
    with display.bar(f"step {step}: sampling", len(questions)) as bar:

        def vote(group: CompletionGroup) -> None:
            estimates[group.question.id] = estimator.estimate(group)
            share = fmean(e.vote.share for e in estimates.values())
            bar.advance(f"majority ratio {share:.2f}")

        groups = pool.sample(questions, params, on_group=vote)
    return groups, [estimates[g.question.id] for g in groups]


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
