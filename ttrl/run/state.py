"""What decides the rest of a run: taken for a checkpoint, and put back."""

from __future__ import annotations

import hashlib
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch

from ttrl.data.questions import QuestionSet
from ttrl.evaluation.abstentions import AbstentionGuard
from ttrl.evaluation.evaluate import Scores
from ttrl.evaluation.guard import CollapseGuard, Keeper
from ttrl.learner.update import KINDS, Policy
from ttrl.rewards.judge import Judge
from ttrl.rewards.labels import LabelSource, Teacher
from ttrl.rollout.pool import RolloutPool
from ttrl.run.checkpoint import Checkpoint
from ttrl.run.resume import refuse_differences
from ttrl.run.saving import refuse_separate_disks
from ttrl.settings import Settings
from ttrl.system.ranks import Ranks
from ttrl.system.rng import globals_state, restore_globals
from ttrl.types import UserError


class Resumable(ABC):
    """The parts of a run that have a state; `ttrl.train.Trainer` makes and uses them."""

    settings: Settings
    ranks: Ranks
    train_set: QuestionSet
    policy: Policy
    judge: Judge
    guard: CollapseGuard
    voters: AbstentionGuard
    keeper: Keeper | None
    labels: LabelSource
    pool: RolloutPool
    origin: dict[str, str]
    """See `ttrl.run.resume.origin_of`."""
    done: int
    """Steps."""
    before: dict[str, Scores]
    after: dict[str, Scores]
    """What was measured before training, and last."""
    started: float
    """When, by `time.perf_counter`, as if the run had never been interrupted."""

    @property
    @abstractmethod
    def replayed(self) -> bool:
        """Whether it is recorded answers that the run goes on with."""

    @abstractmethod
    def refresh(self) -> None:
        """Bring the engine to the policy's weights."""

    def state(self) -> dict[str, Any]:
        """All but `shares` that decides the rest of the run; random numbers have no state."""
        return {
            "step": self.done,
            "settings": self.settings.model_dump(mode="json"),
            "replayed": self.replayed,
            "origin": self.origin,
            "questions": self._fingerprint(),
            "sizes": self._sizes(),
            "steps_taken": self.policy.steps_taken,
            "history": self.judge.state(),
            "guard": self.guard.state(),
            "abstaining_steps": self.voters.in_a_row,
            "kept_steps": self.keeper.steps() if self.keeper else [],
            "teacher": self.labels.state() if isinstance(self.labels, Teacher) else {},
            "pool": self.pool.state(),
            "before": self.before,
            "after": self.after,
            "wall_s": time.perf_counter() - self.started,
            "generators": self.ranks.gather(globals_state()),
        }

    def shares(self) -> dict[str, torch.Tensor]:
        """Copies of this rank's part of all large tensors, by KIND/NAME."""
        shares = self.policy.shares()
        if self.keeper is not None:
            shares |= self.keeper.shares()
        if isinstance(self.labels, Teacher):
            shares |= self.labels.shares()
        return shares

    def _sizes(self) -> dict[str, int]:
        """The numbers of elements of those tensors, whole, by NAME."""
        teachers = self.labels.sizes() if isinstance(self.labels, Teacher) else {}
        return self.policy.sizes() | teachers

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on where a run of the same settings was, on any number of ranks.

        Raises:
            UserError: if it had other settings or questions, or began with another model, or has
                recorded answers still to come and this one samples, or the other way round; or if
                the checkpoint holds what no run has saved.
        """
        rank, count = self.ranks.rank, self.ranks.count
        refuse_separate_disks(checkpoint.path, self.ranks)
        with checkpoint.blamed():
            state = checkpoint.state()
            if state["step"] != checkpoint.step:
                raise ValueError(f"the state of step {state['step']}")
            self._refuse_other_run(checkpoint, state)
        self.pool.sleep()  # it takes the place of what comes back
        self.policy.come_back()  # what is not on the GPU would be written to a copy
        sizes = self.policy.sizes()
        self.policy.load_shares(checkpoint.shares(KINDS, sizes, rank, count, may_lack=KINDS[1:]))
        with checkpoint.blamed():
            self.policy.steps_taken = state["steps_taken"]
            self.judge.load_state(state["history"])
            self.guard.load_state(state["guard"])
            self.voters.in_a_row = state["abstaining_steps"]
            if self.keeper is not None:
                kinds = [f"kept_{i}" for i in range(len(state["kept_steps"]))]
                kept = checkpoint.shares(kinds, sizes, rank, count)
                self.keeper.load(state["kept_steps"], kept)
            if isinstance(self.labels, Teacher):
                own = checkpoint.shares(("teacher",), self.labels.sizes(), rank, count)
                self.labels.load_state(state["teacher"], own)
            self.before, self.after = (
                {exam: dict(scores) for exam, scores in state[when].items()}
                for when in ("before", "after")
            )
            self.done = checkpoint.step
            self.started -= state["wall_s"]
        self.refresh()
        with checkpoint.blamed():
            self.pool.load_state(state["pool"])
            generators = state["generators"]
            restore_globals(generators[rank % len(generators)])

    def _refuse_other_run(self, checkpoint: Checkpoint, state: Mapping[str, Any]) -> None:
        """Raise a UserError that says what this run began with, and that one did not."""
        refuse_differences(
            Settings.model_validate(state["settings"]),
            self.settings,
            f"{checkpoint.path} was saved by a run with other settings",
            "Remove that checkpoint, and an earlier one is used",
        )
        if state["replayed"] != self.replayed:
            add = "give --replay as well" if state["replayed"] else "leave --replay out"
            raise UserError(f"--resume: {add}, as when the run was started")
        model = f"model.path = {self.settings.model.path!r}"
        for what, then, now in (
            ("data.train", state["questions"], self._fingerprint()),
            (f"the configuration of {model}", state["origin"]["config"], self.origin["config"]),
            (f"one of the weights of {model}", state["origin"]["weights"], self.origin["weights"]),
            (f"the set of parameters of {model}", state["sizes"], self._sizes()),
        ):
            if then != now:
                raise UserError(
                    f"--resume: {what} is not what it was when {checkpoint.path} was saved; put it "
                    "back, or start a new run"
                )

    def _fingerprint(self) -> str:
        """A digest of the training questions, in order."""
        digest = hashlib.sha256()
        for question in self.train_set.questions:
            digest.update(repr((question.id, question.prompt_ids)).encode())
        return digest.hexdigest()
