"""The folder of a run: what it leaves on disk."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from ttrl.report.results import EvaluationResult, results_json
from ttrl.report.rollouts import json_lines, judged_line, sampled_line
from ttrl.report.run_record import read_summary
from ttrl.run.checkpoint import TEMPORARY, is_finished, named_as_ours, step_of
from ttrl.run.claim import claim
from ttrl.run.disk import disk
from ttrl.settings import Settings
from ttrl.system.paths import ROLLOUT_NAME, STEP_NAME, step_file
from ttrl.types import CompletionGroup, Estimate, UserError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# What imports torch is imported where it is used: that a folder exists is said at once.

Summary = dict[str, Any]

MODEL_NAME = re.compile(r"(model|agent_[0-9]+)(\.[a-z0-9_]{8}\.tmp)?")
"""The trained model, or one of each agent, and what is left of `save_model` if it is killed."""

STEP_FILE = re.compile(rf"{STEP_NAME}\.(jsonl|safetensors|json|posed\.jsonl)")
"""Files of a step in ``rollouts/`` and ``evaluations/``; others are a user's."""


class RunFolder:
    """The files of a run, from ``config.toml`` to ``summary.json``.

    Between them it has ``metrics.jsonl``, ``rollouts/``, ``evaluations/``, ``checkpoints/`` and
    ``model/``, with ``agent_1/`` and so on where each agent has a policy of its own;
    `ttrl.report.run_record` reads them. A folder that exists is written to only by a
    run that goes on where it ended (`ttrl.run.resume`). A context: what `claim` took is given back
    at its end.
    """

    def __init__(self, path: Path) -> None:
        """Name the folder; `create` makes it."""
        self.path = path
        self.checkpoints = path / "checkpoints"
        self._claims = ExitStack()

    def __enter__(self) -> Self:
        """Return the folder, whose claims end with the context."""
        return self

    def __exit__(self, *error: object) -> None:
        """Give back what `claim` took."""
        self._claims.close()

    def claim(self) -> None:
        """Keep every other process from training in this folder.

        The system ends the claim with the process, however that ends. On a file system that knows
        no locks there is none.

        Raises:
            UserError: if another process has claimed it.
        """
        config = self._claims.enter_context((self.path / "config.toml").open("ab"))
        if not claim(config):
            raise UserError(
                f"run folder {self.path}: another process is training in it; wait for its end, or "
                "end it"
            )

    def refuse_existing(self) -> None:
        """Raise a UserError that says what is there and what to do, if the folder exists."""
        if not os.path.lexists(self.path):
            parent = next(p for p in self.path.absolute().parents if p.exists())
            if not parent.is_dir() or not os.access(parent, os.W_OK):
                raise UserError(f"run folder {self.path}: cannot make a folder in {parent}")
            return
        finished = self.is_finished()
        steps = len(_steps(self.path / "metrics.jsonl"))
        state = "finished" if finished else "unfinished"
        go_on = ""
        if not finished and self.can_go_on():
            go_on = "continue it with --resume, "
        elif not finished and self.last_sampled():
            go_on = f"add --replay {self.path / 'rollouts'} to train on its answers there, "
        raise UserError(
            f"run folder {self.path} exists ({state}, {steps} steps); nothing was overwritten. "
            f"Choose another name with --run-dir {self.free_name()}, {go_on}or remove the "
            "folder"
        )

    def refuse_replay(self, rollouts: Path | None) -> None:
        """Raise a UserError if these are the answers of this very run."""
        if rollouts is not None and rollouts.resolve() == (self.path / "rollouts").resolve():
            raise UserError(
                f"--replay {rollouts}: this run writes its own answers there; name the rollouts "
                "of the run that was recorded"
            )

    def free_name(self) -> Path:
        """Name a folder beside this one that is not there yet."""
        name = self.path.name or "run"  # "." has none
        beside = (self.path.parent / f"{name}-{i}" for i in range(2, 10**6))
        return next(path for path in beside if not path.exists())

    def can_go_on(self) -> bool:
        """Say whether there is something to resume from."""
        begun = (self.path / "config.toml").is_file()
        return begun and (self.is_streamed() or self.last_saved() > 0)

    def is_streamed(self) -> bool:
        """Say whether its questions arrive: they are kept, so it can always go on."""
        return (self.path / "stream").is_dir()

    def is_finished(self) -> bool:
        """Say whether the run has come to its end."""
        return (self.path / "summary.json").exists()

    def summary(self) -> Summary:
        """Read what `write_summary` wrote; empty if nothing was.

        Raises:
            UserError: if it is something else.
        """
        return read_summary(self.path / "summary.json") or {}

    def rewrite_settings(self, settings: Settings) -> None:
        """Write the settings of a run that has been claimed; in place, as the file is the claim."""
        with (self.path / "config.toml").open("r+b") as file:
            file.write(settings.to_toml().encode())
            file.truncate()
            file.flush()
            os.fsync(file.fileno())

    def create(self, settings: Settings) -> None:
        """Make the folder, write the resolved settings, and `claim` it."""
        self.refuse_existing()
        (self.path / "rollouts").mkdir(parents=True)
        put(self.path / "config.toml", settings.to_toml().encode())
        disk.sync(self.path.parent)  # a stream is kept from its first line
        self.claim()

    def keep_answers(self, step: int, groups: Sequence[CompletionGroup]) -> None:
        """Keep what was sampled in a step, one line per question, before it is judged.

        The answers' tokens and log-probs lie beside them (see `ttrl.rollout.engines.recorded`).
        Both files are whole and on disk when this returns; the readable one is the last to appear.
        """
        from ttrl.rollout.engines.recorded import tokens_of

        rollouts = self.path / "rollouts"
        put(step_file(rollouts, step, "safetensors"), tokens_of(groups))
        put(step_file(rollouts, step, "jsonl"), json_lines(map(sampled_line, groups)))

    def keep_estimates(
        self, step: int, groups: Sequence[CompletionGroup], estimates: Sequence[Estimate]
    ) -> None:
        """Say in the lines of `keep_answers` what the answers are and are worth, all at once."""
        records = [judged_line(g, e) for g, e in zip(groups, estimates, strict=True)]
        put(step_file(self.path / "rollouts", step, "jsonl"), json_lines(records))

    def keep_proposals(self, step: int, lines: Sequence[Mapping[str, Any]]) -> None:
        """Keep the questions that the policy has posed in a step, as far as they are judged."""
        put(step_file(self.path / "rollouts", step, "posed.jsonl"), json_lines(lines))

    def keep_evaluations(self, step: int, results: Sequence[EvaluationResult]) -> None:
        """Keep what was measured after a step, 0 for before training, question by question."""
        folder = self.path / "evaluations"
        folder.mkdir(exist_ok=True)
        put(step_file(folder, step, "json"), results_json(results).encode())

    def add_step(self, metrics: Mapping[str, Any]) -> None:
        """Write down that a step is finished: its line of metrics, on disk when this returns.

        Step 0 is what was measured before training.
        """
        line = json_lines([metrics])
        with (self.path / "metrics.jsonl").open("ab") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())

    def last_sampled(self) -> int:
        """Return the last step whose answers are here; 0 if there are none."""
        steps = [0]
        if (rollouts := self.path / "rollouts").is_dir():
            named = (ROLLOUT_NAME.fullmatch(path.name) for path in rollouts.iterdir())
            steps += [int(name[1]) for name in named if name and name[2] == "jsonl"]
        return max(steps)

    def last_made(self) -> int:
        """Return the last step whose metrics are here; 0 if there are none."""
        return max((step for step, _ in _steps(self.path / "metrics.jsonl")), default=0)

    def last_saved(self) -> int:
        """Return the step of the newest checkpoint, by its name; 0 if there is none."""
        return max(
            (step_of(p) for p in named_as_ours(self.checkpoints) if is_finished(p)), default=0
        )

    def save_model(
        self,
        name: str,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        weights: Iterable[tuple[str, torch.Tensor]],
    ) -> None:
        """Save a trained model in the folder ``name``, see `ttrl.run.saved_model`."""
        from ttrl.run.saved_model import save_model

        save_model(self.path / name, model, tokenizer, weights)

    def lines_until(self, step: int) -> list[bytes]:
        """Read the metrics' lines up to ``step``, of a folder that can go back to it and on.

        With -1 it goes back to before its first measurement, for which it needs no checkpoint.

        Raises:
            UserError: if some are missing, or a folder is, or cannot be written to.
        """
        needed = (self.path, self.path / "rollouts", *([self.checkpoints] if step >= 0 else []))
        for folder in needed:
            if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
                raise UserError(
                    f"{folder} is not there, or cannot be written to: a run that goes on needs it; "
                    "put it back, or start again with another --run-dir"
                )
        metrics = self.path / "metrics.jsonl"
        lines = _steps(metrics)
        if len(lines) < step:
            raise UserError(
                f"{metrics} has {len(lines)} steps, expected {step} or more: put it back, or start "
                "again with another --run-dir"
            )
        return [line for at, line in _lines(metrics) if at <= step]

    def remove_after(self, step: int) -> None:
        """Restore what the folder held after ``step``; the checkpoints are left alone.

        A killed run may have written further, or half a line. What is not named as ours stays.

        Raises:
            UserError: before anything is changed, see `lines_until`.
        """
        lines = self.lines_until(step)
        put(self.path / "metrics.jsonl", b"".join(line + b"\n" for line in lines))
        evaluations = self.path / "evaluations"
        measured = evaluations.iterdir() if evaluations.is_dir() else ()
        for path in (*(self.path / "rollouts").iterdir(), *measured):
            named = STEP_FILE.fullmatch(path.name.removesuffix(TEMPORARY))
            if named and int(named[1]) > step:
                path.unlink()
        (self.path / "summary.json").unlink(missing_ok=True)  # first: it says that all is there
        for path in self.path.iterdir():
            if MODEL_NAME.fullmatch(path.name):  # killed between them and the summary
                disk.remove(path)

    def write_summary(self, summary: Summary) -> None:
        """Write ``summary.json``, whole or not at all; its presence says that the run finished."""
        text = json.dumps(summary, indent=2, allow_nan=False) + "\n"
        put(self.path / "summary.json", text.encode())


def put(path: Path, content: bytes) -> None:
    """Write a file that is whole or not there, or still what it was; on disk when this returns."""
    temporary = path.with_name(path.name + TEMPORARY)
    disk.write(temporary, content)
    disk.sync(temporary)
    disk.rename(temporary, path)
    disk.sync(path.parent)


def _lines(path: Path) -> list[tuple[int, bytes]]:
    """Return the whole lines of a run's metrics, each with its step; the last may be cut off."""
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    try:
        return [(int(json.loads(line)["step"]), line) for line in lines]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(
            f"{path}: a line is not one of ours ({type(error).__name__}: {error}): put the file "
            "back, or start again with another --run-dir"
        ) from error


def _steps(path: Path) -> list[tuple[int, bytes]]:
    """Return the lines of steps: not that of what was measured before."""
    return [(step, line) for step, line in _lines(path) if step > 0]
