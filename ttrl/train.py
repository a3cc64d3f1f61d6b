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
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from statistics import fmean

import torch

from ttrl.answers import Grader
from ttrl.credit.selection import select
from ttrl.data.order import QuestionOrder
from ttrl.evaluation.abstentions import AbstentionGuard
from ttrl.evaluation.evaluate import Scores
from ttrl.evaluation.guard import CollapseGuard, Keeper, MismatchGuard
from ttrl.evaluation.metrics import exam_metrics, labelled_metrics, update_metrics, vote_metrics
from ttrl.learner.update import learning_rate
from ttrl.models.pretrained import load_tokenizer
from ttrl.parts import (
    closed_at_the_end,
    load_data,
    make_policy,
    make_repeatable,
    planned_memory,
    refuse_impossible,
    total_steps,
    verify,
    voting,
)
from ttrl.report.display import Display
from ttrl.rewards.judge import Judge, in_background
from ttrl.rewards.labels import (
    Labels,
    LabelSource,
    OwnVotes,
    ReferenceAnswers,
    Teacher,
)
from ttrl.rollout.agreement import Agreement
from ttrl.rollout.engines.recorded import RecordedEngine
from ttrl.rollout.pool import RolloutPool, make_pool
from ttrl.run.checkpoint import Checkpoint
from ttrl.run.resume import after_a_hang, find_start, go_back, nothing_lost, origin_of
from ttrl.run.run_folder import RunFolder, Summary
from ttrl.run.saving import Checkpoints
from ttrl.run.state import Resumable
from ttrl.settings import Settings
from ttrl.system.memory import memory_metrics, memory_suffices
from ttrl.system.ranks import Ranks, join_ranks, leave_ranks
from ttrl.system.watchdog import Watchdog
from ttrl.types import (
    CompletionGroup,
    Estimate,
    Question,
    TrainSample,
    UpdateResult,
    UserError,
    WeightSource,
)

Rollout = tuple[list[CompletionGroup], list[Estimate]]
"""What was sampled in a step, and what it is worth."""


def train(
    settings: Settings,
    folder: RunFolder,
    display: Display,
    replay: Path | None = None,
    *,
    resume: bool = False,
) -> Summary:
    """Train as ``settings`` say, in a new ``folder``; returns what ``summary.json`` holds.

    With ``replay``, the ``rollouts`` folder of a run, its votes are trained on again: nothing is
    sampled, so nothing is measured before and after either. With ``resume``, ``folder`` is that of
    a run that was interrupted, which goes on from its newest complete checkpoint.

    Raises:
        UserError: for what the user can put right about settings, model, data or folder. The
            folder is made only after all of them have been read.
    """
    ranks = join_ranks()
    if replay is not None and replay.resolve() == (folder.path / "rollouts").resolve():
        raise UserError(
            f"--replay {replay}: this run writes its own answers there; name the rollouts of the "
            "run that was recorded"
        )
    checkpoint: Checkpoint | None = None
    with folder, Grader(settings.answers) as grader:
        if resume:
            checkpoint = ranks.first(lambda: find_start(settings, folder, display))
        else:
            ranks.first(folder.refuse_existing)
        watchdog = Watchdog(folder.path / f"stuck_{ranks.rank}.txt", after_a_hang(folder))
        with watchdog.phase("starting", "limits.start_s", settings.limits.start_s):
            trainer = Trainer(settings, display, Judge(settings, grader), replay, ranks, watchdog)
        with closed_at_the_end(trainer.pool, ranks):
            if checkpoint is not None:
                trainer.restore(checkpoint)
            trainer.verify()
            ranks.first(
                lambda: (
                    folder.create(settings) if checkpoint is None else go_back(folder, checkpoint)
                )
            )
            with nothing_lost(folder, settings):
                summary = trainer.run(folder)
    leave_ranks()
    return summary


class Trainer(Resumable):
    """One run: all that can be wrong with it is found when it is made."""

    def __init__(
        self,
        settings: Settings,
        display: Display,
        judge: Judge,
        replay: Path | None,
        ranks: Ranks,
        watchdog: Watchdog,
    ) -> None:
        """Read model and data, and start the engine, which is then at the model's weights."""
        self.started = time.perf_counter()
        self.done = 0
        self.before: dict[str, Scores] = {}
        self.after: dict[str, Scores] = {}
        self.settings, self.display, self.judge, self.ranks = settings, display, judge, ranks
        self.watchdog = watchdog
        make_repeatable(settings)
        refuse_impossible(settings, replay, ranks)
        self.tokenizer = load_tokenizer(settings.model)
        self.train_set, self.exams = load_data(settings, self.tokenizer, judge, display)
        questions = self.train_set.questions
        self.order = QuestionOrder(questions, settings.rollout.questions_per_step, settings.seed)
        if left_out := self.order.left_out:
            display.note(
                f"each pass leaves out {left_out} of {len(questions)} questions, others each time: "
                f"rollout.questions_per_step = {self.order.per_step} does not divide them"
            )
        self.total = total_steps(settings, self.order)
        self.policy = make_policy(settings, ranks)
        self.origin = origin_of(self.policy, getattr(torch, settings.model.dtype))
        self.labels = self._label_source()
        # Rollouts may go on while the update talks to the other ranks.
        self.sampling_ranks = ranks.apart() if settings.rollout.overlap else ranks
        self.agreement: Agreement | None = None
        self.recorded = replay is not None
        self.last = self.total  # step that can be made: the record may end before
        if replay is None:
            self.policy.make_room()  # vLLM starts only if all of its share of the GPU is free
            self.pool = make_pool(settings, self.tokenizer, self.sampling_ranks, empty=True)
            self.pool.refresh(self.policy)
        else:
            engine = RecordedEngine(replay)
            self.last = min(self.total, engine.steps)
            self.pool = RolloutPool(engine, self.sampling_ranks)
            self.pool.refresh(self.policy)
            self.exams = ()  # they are not recorded
        self.guard = CollapseGuard(settings.guard, self.order.steps_per_epoch)
        self.voters = AbstentionGuard(settings, judge.extract)
        self.mismatch = MismatchGuard(settings.guard.sampler_kl)
        stopping = settings.guard.on_collapse == "stop"
        self.keeper = Keeper(self.policy, self.order.steps_per_epoch) if stopping else None
        self.planned = planned_memory(settings, ranks, display)
        self.sampler = ThreadPoolExecutor(1, thread_name_prefix="rollout")
        self.next_rollout: Future[Rollout] | None = None

    def verify(self) -> None:
        """Compare the engine with the policy, at the weights that training begins with.

        Raises:
            UserError: if they are not the same model.
        """
        if not self.recorded:
            questions = self.train_set.questions
            with self._limited("start"):
                self.agreement = verify(self.settings, self.pool, self.policy, questions)

    def run(self, folder: RunFolder) -> Summary:
        """Train, measure before and after, and write everything down."""
        self.display.note(f"kernels: {self.policy.kernels}")
        if (agreement := self.agreement) is not None:
            self.display.note(
                f"engine and policy agree: log-probs differ by {agreement.mean:.2g} nats per token "
                f"on average, logits by {agreement.logits:.2g}"
            )
        every = self.settings.evaluation.every
        stopped: str | None = None
        self.folder = folder
        self.saving = saving = Checkpoints(folder.checkpoints, self.settings.checkpoint, self.ranks)
        with self.display.training(self.total, self.done), saving:
            if self.done == 0:
                self.before = self.after = self._measure(0)
            while self.done < self.last and not stopped:
                saving.check()
                step = self.done + 1
                groups, metrics = self._step(step)
                stopped = self._watch(step, metrics) or self._count_voters(step, groups, metrics)
                self.refresh()
                if stopped or step == self.last or (every and step % every == 0):
                    self.after = self._measure(step)
                    metrics |= exam_metrics(self.after)
                self.ranks.first(partial(folder.add_step, metrics))
                self.display.step(step, self.total, metrics)
                self.done = step
                if saving.due(step, self.last) and not stopped:
                    with self._limited("save"):
                        saving.save(step, self.state(), self.shares(), self._score(metrics))
            with self._limited("save"):
                saving.finish()
        resumable = False
        if self.done < self.total and not stopped:
            stopped = f"the recorded answers end with step {self.done} of {self.total}"
            resumable = self.settings.checkpoint.every > 0
            way = ": with --resume instead of --replay this command samples on" if resumable else ""
            self.display.note(f"{stopped}{way}")
        summary = self._summary(stopped)
        self.pool.sleep()  # layers are made whole once more
        with self._limited("save"):
            self.policy.hand_over(partial(folder.save_model, self.policy.model, self.tokenizer))
        if not resumable:
            self.ranks.first(partial(folder.write_summary, summary))
        return summary

    @property
    def replayed(self) -> bool:
        """Whether it is recorded answers that the run goes on with."""
        return self.recorded and (self.done < self.last or self.last == self.total)

    def _summary(self, stopped: str | None) -> Summary:
        """What was reached, and why it is not more."""
        before, after = self.before, self.after
        return {
            "before": before.get("train", {}),
            "after": after.get("train", {}),
            "held_out": {"before": before.get("held_out", {}), "after": after.get("held_out", {})},
            "steps": self.done,
            "stopped": stopped,
            "kernels": self.policy.kernels,
            "wall_s": time.perf_counter() - self.started,
        }

    def refresh(self) -> None:
        """The engine at the policy's weights, in what memory the policy can spare."""
        if self.next_rollout is not None:
            with self._limited("rollout"):
                wait([self.next_rollout])
        with self._limited("push"):
            self.policy.make_room()
            self.pool.refresh(self.policy)

    def _limited(self, phase: str) -> AbstractContextManager[None]:
        """A phase with its time limit in ``[limits]``."""
        setting = f"{phase}_s"
        limit: float = getattr(self.settings.limits, setting)
        return self.watchdog.phase(phase, f"limits.{setting}", limit)

    def _step(self, step: int) -> tuple[list[CompletionGroup], dict[str, float]]:
        """One step: what was sampled, and what there is to say of it."""
        settings, judge, key = self.settings, self.judge, self.train_set.key
        begun = time.perf_counter()
        with self._limited("rollout"):
            ahead = self.next_rollout
            groups, estimates = self._rollout(step) if ahead is None else ahead.result()
        sampled = time.perf_counter()
        metrics = {
            "step": step,
            "rollout/updates_behind": self.pool.policy_version - groups[0].policy_version,
            "time/rollout_s": sampled - begun,
            **memory_metrics("rollout"),
        }
        samples, trained = select(groups, estimates, settings, step)
        metrics |= vote_metrics(groups, estimates, judge.history, judge.grader, trained)
        metrics |= labelled_metrics(groups, estimates, key, judge.grader, trained)
        judge.remember(step, groups, estimates)
        self.next_rollout = self._rollout_ahead(step)
        if self.next_rollout is None:
            self.pool.sleep()
        updates = self._update(samples, step)
        metrics |= update_metrics(updates)
        metrics |= {"time/update_s": time.perf_counter() - sampled, **memory_metrics("update")}
        if step == 1 and self.agreement is not None:
            metrics["mismatch/at_start"] = self.agreement.mean
            metrics["mismatch/at_start_logits"] = self.agreement.logits
        metrics |= {f"memory/{phase}_planned": gib for phase, gib in self.planned.items()}
        if step == 1 and self.planned:
            found = [
                f"{phase} {gib:.1f}, {metrics[f'memory/{phase}_gpu']:.1f}"
                for phase, gib in self.planned.items()
            ]
            self.display.note(f"GPU memory in GiB, planned and in use: {'; '.join(found)}")
        return groups, metrics

    def _update(self, samples: Sequence[TrainSample], step: int) -> list[UpdateResult]:
        """Train the policy."""
        try:
            rate = learning_rate(step, self.total, self.settings.optimizer)
            with (
                self._limited("update"),
                memory_suffices(
                    "during the update",
                    "lower memory.tokens_per_batch, or set memory.gradient_checkpointing = true",
                ),
            ):
                self.policy.come_back()
                updates = self.policy.update(samples, rate)
        except FloatingPointError as error:
            raise UserError(f"step {step}: {error}") from error
        self.labels.follow(self.policy)
        return updates

    def _rollout_ahead(self, step: int) -> Future[Rollout] | None:
        """Begin to sample the step after this one, if that is asked for.

        Not where a checkpoint is due: it is taken between two steps, and a run that goes on from
        it must sample what this one does.
        """
        overlap = self.settings.rollout.overlap and step < self.last
        if not overlap or self.saving.due(step, self.last):
            return None
        return self.sampler.submit(self._rollout, step + 1)

    def _rollout(self, step: int) -> Rollout:
        """A step's groups and their estimates, with the weights that the engine has now."""
        questions = self.order.take(step)
        return self._sample_and_judge(questions, self.labels.take(questions, step), step)

    def _sample_and_judge(
        self, questions: Sequence[Question], labels: Labels, step: int
    ) -> Rollout:
        """The step's groups and their estimates, judged while others are still being sampled.

        Each rank judges the groups that it samples. Both are on disk when they are known: what
        fails in judging is raised when all groups have been sampled and kept.
        """
        judge, keep = self.judge, self.sampling_ranks.first
        with (
            self.display.bar(f"step {step}: sampling", len(questions)) as bar,
            in_background(lambda group: judge.estimate(group, labels, step)) as (submit, judged),
        ):

            def done(group: CompletionGroup) -> None:
                submit(group)
                over = [f for f in list(judged.values()) if f.done()]
                shares = [f.result().vote.share for f in over if f.exception() is None]
                bar.advance(f"majority ratio {fmean(shares):.2f}" if shares else "")

            decided = judge.decided if self.settings.rollout.stop_when_decided else None
            params = voting(self.settings, "rollout", step)
            groups = self.pool.sample(questions, params, done, decided)
            keep(partial(self.folder.keep_answers, step, groups))
            own = {question: future.result() for question, future in judged.items()}
            merged = self.sampling_ranks.merge(own)
        estimates = [merged[g.question.id] for g in groups]
        keep(partial(self.folder.keep_estimates, step, groups, estimates))
        return groups, estimates

    def _watch(self, step: int, metrics: dict[str, float]) -> str | None:
        """Look for a collapse; why the run must stop, if it must, with the weights restored."""
        sign = self.guard.sign(metrics)
        metrics["guard/collapse"] = float(sign is not None)
        metrics["guard/mismatch"] = float(self.mismatch.is_off(metrics))
        if (warning := self.mismatch.warning(metrics)) is not None:
            self.display.note(f"step {step}: warning: {warning}")
        if sign is not None and self.guard.is_new:
            self.display.note(f"step {step}: warning: looks like a collapse: {sign}")
        if self.keeper is None:
            return None
        if sign is None:
            self.keeper.after_step(self.policy, step)
            return None
        kept = self.keeper.restore(self.policy)
        self.display.note(f"stopped in step {step}; the model is that of step {kept}")
        return f"step {step}: {sign}; the model is that of step {kept}"

    def _count_voters(
        self, step: int, groups: Sequence[CompletionGroup], metrics: Mapping[str, float]
    ) -> str | None:
        """Look for a vote without voters; why the run must stop, if it must."""
        share = metrics["vote/abstention_share"]
        if (warning := self.voters.warning(share, groups)) is not None:
            self.display.note(f"step {step}: warning: {warning}")
        if (reason := self.voters.stop(share)) is None:
            return None
        self.display.note(f"stopped in step {step}: {reason}")
        return f"step {step}: {reason}"

    def _score(self, metrics: Mapping[str, float]) -> float | None:
        """How good the policy is by ``checkpoint.best``; None if nobody asks, or it collapses."""
        match self.settings.checkpoint.best:
            case "majority_ratio":
                return None if metrics["guard/collapse"] else self.guard.majority_ratio
            case "held_out":
                return metrics.get("exam/held_out/pass@1")
        return None

    def _measure(self, step: int) -> dict[str, Scores]:
        """The exams' scores by name."""
        scores = {}
        for exam in self.exams:
            sampled: list[CompletionGroup] = []
            with self._limited("exam"):
                scores[exam.name] = exam.take(self.pool, step, self.display, sampled.append)
            share = scores[exam.name].get("abstention_share", 0.0)
            if step == 0 and (warning := self.voters.warning(share, sampled)) is not None:
                self.display.note(f"measured before training: {exam.name}: warning: {warning}")
        return scores

    def _label_source(self) -> LabelSource:
        """What ``reward.labels`` asks for; a teacher starts from the policy's present weights."""
        match self.settings.reward.labels:
            case "votes":
                return OwnVotes()
            case "teacher":
                decay = self.settings.reward.teacher_decay
                return Teacher(self.policy, decay, self._elect, self.ranks)
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
