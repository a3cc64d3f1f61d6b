"""Test-time reinforcement learning, from top to bottom (TTRL, arXiv 2504.16084).

A step samples many answers to a few unlabeled questions, lets them vote, rewards those that agree
with the majority, and moves the policy towards them:

    questions -> groups -> estimates -> samples -> updates

`ttrl.build` makes the parts; `Trainer.step` is the loop's body. Reference answers, where a data set
has them, go to `Evaluation` and `labelled_metrics` only. Both return numbers to be written down and
nothing else, so training with the answers removed or shuffled gives the same weights, bit for bit
(tests/e2e/test_labels.py). The one exception must be asked for twice:
``reward.labels = "ground_truth"`` with ``reward.allow_ground_truth``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path

from ttrl.answers import Grader
from ttrl.build import Parts, build
from ttrl.credit.credit import Assigned
from ttrl.evaluation.evaluation import all_scores
from ttrl.evaluation.free_passes import free_pass_metrics
from ttrl.evaluation.metrics import (
    evaluation_metrics,
    labelled_metrics,
    mismatch_metrics,
    update_metrics,
    vote_metrics,
)
from ttrl.learner.trained_model import TrainedModel
from ttrl.report.display import Display
from ttrl.report.results import Scores
from ttrl.report.tracking import Tracking
from ttrl.rewards.estimators import RewardEstimator
from ttrl.rewards.free_pass import AfterVoting
from ttrl.rewards.scorer import GroupScorer
from ttrl.rollout.agreement import Agreement
from ttrl.rollout.pool import closed_at_the_end
from ttrl.rollout.resampling import Rollout
from ttrl.rollout.sampling import verifying
from ttrl.run.callbacks import Callback, ask_callbacks
from ttrl.run.checkpoint import Checkpoint
from ttrl.run.live_report import LiveReport
from ttrl.run.planned import figures_of_the_start
from ttrl.run.resume import after_a_hang, find_start, go_back, nothing_lost, refuse_no_steps
from ttrl.run.rollout_phase import RolloutPhase
from ttrl.run.rollouts import InTurn, Limited, Rollouts, Sampled
from ttrl.run.run_folder import RunFolder, Summary
from ttrl.run.saving import Checkpoints, refuse_separate_disks
from ttrl.run.stateful import restore, shards_of, states_of
from ttrl.settings import Settings
from ttrl.settings.serve_rules import SENT, serves
from ttrl.stream.phase import StreamPhase
from ttrl.system.memory import memory_metrics, memory_suffices
from ttrl.system.ranks import join_ranks, leave_ranks
from ttrl.system.versions import changed, versions
from ttrl.system.watchdog import Watchdog
from ttrl.types import CompletionGroup, StepResult, UpdateResult, UserError

MakeRollouts = Callable[[RolloutPhase, StreamPhase, Limited], Rollouts]
"""Function that makes what answers questions beside the updates."""


def train(
    settings: Settings,
    folder: RunFolder,
    display: Display,
    replay: Path | None = None,
    *,
    resume: bool = False,
    estimator: RewardEstimator | None = None,
    callbacks: Sequence[Callback] = (),
    serve: MakeRollouts | None = None,
) -> Summary:
    """Train as ``settings`` say; return what ``summary.json`` holds.

    `ttrl.api.train` explains the arguments, but for ``serve``: it makes what answers questions that
    are sent to a server. In a replay nothing is sampled, so nothing is measured before and after
    either.

    Raises:
        UserError: for what the user can put right about settings, model, data or folder. The
            folder is made only after all of them have been read.
    """
    if serves(settings) != (serve is not None):
        raise UserError(f'data.train = "{SENT}" is for ttrl serve, and for nothing else')
    ranks = join_ranks()
    folder.refuse_replay(replay)
    checkpoint: Checkpoint | None = None
    with folder, Grader(settings.answers) as grader:
        if resume:
            checkpoint = ranks.on_rank_zero(lambda: find_start(settings, folder, display))
        else:
            ranks.on_rank_zero(folder.refuse_existing)
        watchdog = Watchdog(folder.path / f"stuck_{ranks.rank}.txt", after_a_hang(folder, settings))
        with watchdog.phase("starting", "limits.start_s", settings.limits.start_s):
            scorer = GroupScorer(settings, grader, estimator)
            parts = build(settings, display, scorer, replay, ranks)
        with closed_at_the_end(parts.pool, ranks):
            trainer = Trainer(parts, folder, watchdog, callbacks, serve)
            if checkpoint is not None:
                trainer.restore(checkpoint)
                refuse_no_steps(folder, trainer.done, parts.total)
            trainer.verify()
            ranks.on_rank_zero(
                lambda: go_back(folder, checkpoint, settings) if resume else folder.create(settings)
            )
            with nothing_lost(folder, settings):
                summary = trainer.run()
    leave_ranks()
    return summary


class Trainer:
    """One run, from where it begins to its end."""

    def __init__(
        self,
        parts: Parts,
        folder: RunFolder,
        watchdog: Watchdog,
        callbacks: Sequence[Callback],
        serve: MakeRollouts | None = None,
    ) -> None:
        """Begin at step 0 with these ``parts``; see `train` for ``serve``."""
        self.parts, self.settings, self.ranks = parts, parts.settings, parts.ranks
        self.folder, self.watchdog, self.callbacks = folder, watchdog, callbacks
        self.display = parts.display
        self.done = 0
        """The number of steps done."""
        self.agreement: Agreement | None = None
        phase = RolloutPhase(
            parts.settings,
            parts.source,
            parts.workflow,
            parts.pool,
            parts.model,
            parts.labels,
            parts.scorer,
            parts.sampling_ranks,
            folder,
            parts.display,
            parts.free_prompts,
            parts.posed,
        )
        # What has come of a stream, or was posed, is in the folder: more than memory should hold.
        key = parts.key if parts.stream is None and parts.posed is None else None
        self.report = LiveReport(folder.path, key, parts.settings, parts.display, parts.ranks)
        self.serves = serve is not None
        self.rollouts: Rollouts = InTurn(phase, parts.goes_on, parts.answer, self._limited)
        if serve is not None:
            assert parts.stream is not None  # a rule of the settings
            self.rollouts = serve(phase, parts.stream, self._limited)

    def run(self) -> Summary:
        """Train, measure before and after, and write everything down."""
        parts, every = self.parts, self.settings.evaluation.every
        self._say_what_was_found()
        stopped: str | None = None
        saving = Checkpoints(self.folder.checkpoints, self.settings.checkpoint, self.ranks)
        self.saving = saving  # not before the folder is there
        tracking = Tracking(
            self.settings, self.folder.path, self.display.note, is_main=self.ranks.is_main
        )
        arriving, rollouts = parts.arriving(self.folder.path), self.rollouts.running(self.done)
        with self.display.training(parts.total, self.done), saving, tracking, arriving, rollouts:
            if self.done == 0:
                before = parts.measured.before = parts.measured.after = self._measure(0)
                if found := evaluation_metrics(before):
                    self.ranks.on_rank_zero(partial(self.folder.add_step, {"step": 0, **found}))
                    self.display.measured(found)
                    tracking.step(0, found)
            result: StepResult | None = None
            while not stopped:
                saving.check()
                if (sampled := self.rollouts.next(self.done)) is None:
                    break
                result, step = self.step(sampled), sampled.step
                stopped = self._reason_to_stop(result)
                self.push_weights()
                if parts.stream is not None:
                    with self._limited("rollout"):
                        went_back = parts.stream.after_push(result, is_end=bool(stopped))
                    if went_back:
                        self.push_weights()
                if stopped or step == parts.last or (every and step % every == 0):
                    parts.measured.after = self._measure(step)
                    result.metrics.update(evaluation_metrics(parts.measured.after))
                self.ranks.on_rank_zero(partial(self.folder.add_step, result.metrics))
                self.display.step(step, parts.total, result.metrics)
                tracking.step(step, result.metrics, result.groups, result.estimates)
                self.done = step
                self.report.refresh()
                if saving.due(step, parts.last) and not stopped:
                    self._save(result)
            # A stream's last step is known only when no other comes.
            if self.done and parts.stream is not None and not stopped and self.done != parts.last:
                parts.measured.after = self._measure(self.done)
                if result is not None and saving.due_after_all(self.done):
                    self._save(result)
            with self._limited("save"):
                saving.finish()
        return self._finish(stopped)

    def step(self, sampled: Sampled) -> StepResult:
        """Assign credit to what has been sampled and has voted, and update the policy."""
        parts, begun = self.parts, time.perf_counter()
        step, rollout = sampled.step, sampled.rollout
        groups, estimates = rollout.groups, rollout.estimates
        behind = parts.pool.policy_version - groups[0].policy_version
        metrics = {"step": step, "rollout/updates_behind": behind, **sampled.metrics}
        scorer = parts.scorer
        scorer.remember(step, groups, estimates)
        if not self.rollouts.go_on(step, ahead=self._may_go_ahead(step)):
            parts.pool.sleep()
        assigned, updates = self._update(rollout, step)
        chosen = rollout.chosen(assigned.chosen)
        metrics |= vote_metrics(groups, estimates, scorer.history, chosen)
        metrics |= labelled_metrics(groups, estimates, parts.key, scorer.grader, chosen)
        for name, taken in updates.items():
            metrics |= update_metrics(taken, name)
        metrics |= mismatch_metrics(*updates.values()) | dict(assigned.metrics)
        for name, learned in assigned.updates.items():
            metrics |= update_metrics(learned, name)
        metrics |= rollout.metrics() if self.settings.rollout.resample_rounds else {}
        metrics |= rollout.figures
        if parts.posed is not None:
            parts.posed.forget([group.question for group in groups])
        if isinstance(parts.labels, AfterVoting):
            metrics |= free_pass_metrics(groups, estimates)
            metrics["time/free_pass_s"] = rollout.free_pass_s
        metrics |= {"time/update_s": time.perf_counter() - begun, **memory_metrics("update")}
        note = self.display.note
        metrics |= figures_of_the_start(step, parts.planned, self.agreement, metrics, note)
        return StepResult(step, groups, estimates, metrics)

    # --- Parts of a step

    def _may_go_ahead(self, step: int) -> bool:
        """Say whether the step after this one may be sampled beside this one's update.

        Not where a checkpoint is due: it is taken between two steps, and a run that goes on from
        it must sample what this one does.
        """
        last, overlap = self.parts.last, self.settings.rollout.overlap
        return overlap and not self.saving.due(step, last) and step != last

    def _update(
        self, rollout: Rollout, step: int
    ) -> tuple[Assigned, dict[str, list[UpdateResult]]]:
        """Assign credit, which may train models of its own, and train the policy, or each."""
        parts = self.parts
        groups = [rollout.groups[i] for i in rollout.batch]
        estimates = [rollout.estimates[i] for i in rollout.batch]
        remedy = "lower memory.tokens_per_batch, or set memory.gradient_checkpointing = true"
        try:
            with self._limited("update"), memory_suffices("during the update", remedy):
                assigned = parts.credit.assign(groups, estimates, step)
                samples = rollout.trained(assigned.samples)
                updates = parts.policies.update(samples, parts.rate(step))
        except FloatingPointError as error:
            raise UserError(f"step {step}: {error}") from error
        parts.labels.after_update(parts.model)
        return assigned, updates

    def push_weights(self) -> None:
        """Bring the engine to the policy's weights, in what memory the policy can spare."""
        with self.rollouts.engine(), self._limited("push"):
            self.parts.policies.offload()
            self.parts.pool.push_weights(self.parts.model)

    # --- What is watched and measured

    def verify(self) -> None:
        """Compare the engine with the policy, at the weights that training begins with.

        Raises:
            UserError: if they are not the same model.
        """
        parts = self.parts
        if parts.replayed:
            return
        questions = parts.source.examples(max(4, parts.pool.engines))
        params, dtype = verifying(self.settings), self.settings.model.dtype
        when, remedy = "while engine and policy were compared", "lower rollout.gpu_memory_share"
        with self._limited("start"), memory_suffices(when, remedy):
            self.agreement = parts.pool.verify(parts.model, questions, params, dtype)

    def _say_what_was_found(self) -> None:
        parts = self.parts
        self.display.note(f"{'folder':<10} {self.folder.path}")
        self.display.note(f"kernels: {parts.model.kernels}")
        if (agreement := self.agreement) is not None:
            self.display.note(
                f"engine and policy agree: log-probs differ by {agreement.mean:.2g} nats, "
                f"logits by {agreement.logits:.2g}"
            )

    def _reason_to_stop(self, result: StepResult) -> str | None:
        """Return why a guard or a callback ends the run after this step; None: none does."""
        reason = self.parts.guards.reason_to_stop(result.step, result.groups, result.metrics)
        said = ask_callbacks(self.callbacks, result, self.ranks)
        if said is not None and reason is None:
            self.display.note(f"stopped in step {result.step}: {said}")
            reason = f"step {result.step}: {said}"
        return reason

    def _measure(self, step: int) -> dict[str, Scores]:
        """Return the scores of the evaluations by name; what they are means of is on disk."""
        results = {}
        for evaluation in self.parts.evaluations:
            sampled: list[CompletionGroup] = []
            name = evaluation.name
            with self._limited("eval"):
                results[name] = evaluation.run(self.parts.pool, step, self.display, sampled.append)
            if step == 0:
                share = results[name].flat().get("abstention_share", 0.0)
                when = f"measured before training: {name}"
                self.parts.guards.warn_of_abstentions(when, share, sampled)
        found = [result for result in results.values() if result.questions]
        if found:
            self.ranks.on_rank_zero(partial(self.folder.keep_evaluations, step, found))
        return all_scores(results, self.settings.data.ids) if results else {}

    def _limited(self, phase: str) -> AbstractContextManager[None]:
        """Give a phase its time limit in ``[limits]``."""
        setting = f"{phase}_s"
        limit: float = getattr(self.settings.limits, setting)
        return self.watchdog.phase(phase, f"limits.{setting}", limit)

    # --- Saving and going on

    def _save(self, result: StepResult) -> None:
        parts = self.parts
        score = parts.guards.score(result.metrics)
        with self._limited("save"):
            states = states_of({**parts.stateful(), **parts.stateful_engine()})
            made = {"identity": parts.identity(self.done).as_json()}
            made["versions"] = versions(parts.model.kernels)
            state = {"step": self.done, **made, "parts": states}
            self.saving.save(self.done, state, shards_of(parts.stateful()), score)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue a run of the same settings from a checkpoint, on any number of ranks.

        Raises:
            UserError: if it had other settings or questions, or began with another model, or has
                recorded answers still to come and this one samples, or the other way round; or if
                the checkpoint holds what no run has saved.
        """
        parts = self.parts
        refuse_separate_disks(checkpoint.path, self.ranks)
        with checkpoint.errors_as_user_error():
            state = checkpoint.state()
            if state["step"] != checkpoint.step:
                raise ValueError(f"the state of step {state['step']}")
            parts.identity(done=0).refuse_other(state["identity"], checkpoint.path)
        if others := changed(state.get("versions", {}), versions(parts.model.kernels)):
            self.display.note(f"continuing with {', '.join(others)}: they may round otherwise")
        parts.pool.sleep()  # it takes the place of what comes back
        self.done = checkpoint.step
        with checkpoint.errors_as_user_error():
            states = dict(state["parts"])
        for name, part in parts.stateful().items():
            with part.reloaded() if isinstance(part, TrainedModel) else nullcontext():
                restore({name: part}, states, checkpoint, self.ranks)
        self.push_weights()
        restore(parts.stateful_engine(), states, checkpoint, self.ranks)

    def _finish(self, stopped: str | None) -> Summary:
        """Save the model, and say what was reached, unless the run can still go on."""
        parts, resumable = self.parts, self.serves and not stopped
        if parts.replayed and self.done < (parts.total or 0) and not stopped:
            stopped = f"the recorded answers end with step {self.done} of {parts.total}"
            resumable = self.settings.checkpoint.every > 0
            way = ": with --resume instead of --replay this command samples on" if resumable else ""
            self.display.note(f"{stopped}{way}")
        summary: Summary = {
            **parts.measured.summary(),
            "steps": self.done,
            "stopped": stopped,
            "kernels": parts.model.kernels,
            "wall_s": parts.clock.seconds(),
        }
        if parts.stream is not None:
            summary["stream"] = parts.stream.summary()
        parts.pool.sleep()  # layers are made whole once more
        with self._limited("save"):
            for name, model in parts.policies.saved().items():
                save = partial(self.folder.save_model, name, model.model, parts.tokenizer)
                model.hand_over(save)
        if not resumable:
            self.ranks.on_rank_zero(partial(self.folder.write_summary, summary))
        self.report.finish()
        return summary
