"""Experiment trackers: what their own readers find, and that none of them can end a run."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from ttrl.report import tracking as module
from ttrl.report.trackers import TRACKERS, SampledAnswer, Tracked, refuse_absent_trackers
from ttrl.report.trackers.mlflow import plain
from ttrl.report.tracking import Tracking, sampled_answers
from ttrl.rewards.vote import majority_vote
from ttrl.settings import Settings, TrackingSettings
from ttrl.settings.recipe import load_settings
from ttrl.types import Completion, CompletionGroup, Estimate, FinishReason, Question, UserError

HOSTILE = "<script>alert('x')</script> | **b** \x1b[31m\n```\n</pre><b>out</b>"
CANARY = "canary" * 6 + "0123"


def settings(*trackers: str, **changes: Any) -> Settings:
    tracking = {"trackers": trackers, "name": "first", "answers_every": 2, **changes}
    return load_settings("tiny-arithmetic").model_copy(
        update={"tracking": TrackingSettings.model_validate(tracking)}
    )


def group(name: str, *texts: str) -> CompletionGroup:
    completions = tuple(Completion((1,), (-0.5,), text, FinishReason.STOP) for text in texts)
    return CompletionGroup(Question(name, f"text of {name}", (1, 2)), completions, 0)


GROUPS = [group("a", HOSTILE, "2"), group("b", "3")]
ESTIMATES = [
    Estimate(majority_vote(["1", "2"]), (1.0, 0.0), "1"),
    Estimate(majority_vote([None]), (0.0,), None),
]
METRICS = {"step": 1.0, "vote/majority_ratio": 0.25, "eval/train/pass@1": 0.5}


def send(run: Path, chosen: Settings, steps: Sequence[int]) -> list[str]:
    """What was shown on the screen meanwhile."""
    notes: list[str] = []
    with Tracking(chosen, run, notes.append) as tracking:
        for step in steps:
            told = METRICS | {"step": float(step)}
            tracking.step(step, told, *((GROUPS, ESTIMATES) if step else ()))
    return notes


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    return folder


# ---------------------------------------------------------------------------------------------
# Each is read back by its own reader


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder to work in, with a secret in the environment that must not come out of it."""
    monkeypatch.chdir(tmp_path)
    for name in ("WANDB_API_KEY", "MLFLOW_TRACKING_TOKEN", "HF_TOKEN"):
        monkeypatch.setenv(name, CANARY)
    yield tmp_path
    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert CANARY.encode() not in path.read_bytes(), path


def test_tensorboard(run: Path, elsewhere: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert send(run, settings("tensorboard"), [0, 1, 2]) == []
    assert send(run, settings("tensorboard"), [2, 3]) == []  # from a checkpoint of step 1
    events = EventAccumulator(str(run / "trackers" / "tensorboard"))
    events.Reload()
    scalars = [(e.step, e.value) for e in events.Scalars("eval/train/pass@1")]
    assert scalars == [(0, 0.5), (1, 0.5), (2, 0.5), (3, 0.5)]
    texts = events.Tensors("answers/0/text_summary")
    assert [e.step for e in texts] == [1, 2]
    said = texts[0].tensor_proto.string_val[0].decode()
    assert "&lt;script&gt;" in said and "<script>" not in said and "<b>" not in said
    (recipe,) = events.Tensors("recipe/text_summary")
    assert "tiny-arithmetic" in recipe.tensor_proto.string_val[0].decode()


def test_mlflow(run: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{elsewhere}/mlflow.db")
    assert send(run, settings("mlflow"), [0, 1, 2]) == []
    assert send(run, settings("mlflow"), [2, 3]) == []
    client = MlflowClient()
    experiment = client.get_experiment_by_name("ttrl")
    assert experiment is not None
    (found,) = client.search_runs([experiment.experiment_id])
    assert (found.info.run_name, found.info.status) == ("first", "FINISHED")
    history = client.get_metric_history(found.info.run_id, "eval/train/pass_at_1")
    assert [(m.step, m.value) for m in history] == [(0, 0.5), (1, 0.5), (2, 0.5), (3, 0.5)]
    assert found.data.params["rollout.votes"] == str(load_settings("tiny-arithmetic").rollout.votes)
    names = {f.path for f in client.list_artifacts(found.info.run_id, "answers")}
    assert names == {"answers/step_00001.json", "answers/step_00002.json"}
    path = client.download_artifacts(found.info.run_id, "answers/step_00001.json")
    table = json.loads(Path(path).read_text(encoding="utf-8"))
    assert table["data"][0][2] == HOSTILE


@pytest.fixture
def own_wandb() -> Iterator[None]:
    """W&B reads its environment once per process."""
    import wandb

    wandb.teardown()
    yield
    wandb.teardown()


def wandb_records(file: bytes) -> Iterator[Any]:
    """Read W&B's own messages out of its log, which is one of LevelDB behind 7 bytes.

    Blocks of 32 KiB hold pieces: a checksum, a length, and 1 whole, 2 first, 3 middle, 4 last.
    """
    from wandb.proto.wandb_internal_pb2 import Record

    at, message = 7, b""
    while at < len(file):
        if (left := 2**15 - at % 2**15) < 7:  # no room for another piece
            at += left
            continue
        length, kind = int.from_bytes(file[at + 4 : at + 6], "little"), file[at + 6]
        message += file[at + 7 : at + 7 + length]
        at += 7 + length
        if at > len(file):  # it is being written
            return
        if kind in (1, 4):
            yield Record.FromString(message)
            message = b""


def whole_record(path: Path) -> list[Any]:
    """Wait for the last message of a log: W&B's process may still be writing when a run is over."""
    deadline = time.monotonic() + 60
    while not (found := list(wandb_records(path.read_bytes()))) or not found[-1].HasField("exit"):
        assert time.monotonic() < deadline, f"{len(found)} messages, and no end"
        time.sleep(0.05)
    return found


@pytest.mark.usefixtures("own_wandb")
def test_wandb_offline(run: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert send(run, settings("wandb"), [0, 1, 2]) == []
    assert send(run, settings("wandb"), [2, 3]) == []
    first, second = sorted((run / "trackers" / "wandb").glob("offline-run-*/*.wandb"))
    assert first.name == second.name  # the same run
    values: list[tuple[int, float]] = []
    for path in (first, second):
        for record in whole_record(path):
            items = {i.key or "/".join(i.nested_key): i.value_json for i in record.history.item}
            if "eval/train/pass@1" in items:
                values.append((int(items["_step"]), float(items["eval/train/pass@1"])))
    assert values == [(0, 0.5), (1, 0.5), (2, 0.5), (3, 0.5)]
    (table, _) = sorted((run / "trackers").rglob("*.table.json"))
    assert json.loads(table.read_text(encoding="utf-8"))["data"][0][2] == HOSTILE


def test_trackio(run: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import trackio.sqlite_storage as storage
    from trackio import utils

    for part in (utils, storage):  # read when it was imported
        monkeypatch.setattr(part, "TRACKIO_DIR", elsewhere / "trackio")
    assert send(run, settings("trackio"), [0, 1, 2]) == []
    assert send(run, settings("trackio"), [2, 3]) == []
    (name,) = storage.SQLiteStorage.get_runs("ttrl")
    assert name.startswith("first-")
    logs = storage.SQLiteStorage.get_logs("ttrl", name)
    found = [(log["step"], log["eval/train/pass@1"]) for log in logs]
    assert found == [(0, 0.5), (1, 0.5), (2, 0.5), (3, 0.5)]


# ---------------------------------------------------------------------------------------------
# None of them can end a run, or hold it up


@dataclass
class Fake:
    """Remembers what it got, or does as ``fails`` says."""

    tracked: Tracked
    got: list[tuple[int, int]] = field(default_factory=list)
    fails: Mapping[str, BaseException] = field(default_factory=dict)
    id: str = "fake"
    ended: bool | None = None

    def log(
        self, step: int, metrics: Mapping[str, float], answers: Sequence[SampledAnswer]
    ) -> None:
        if error := self.fails.get(f"log {step}"):
            raise error
        self.got.append((step, len(answers)))

    def finish(self, *, failed: bool) -> None:
        self.ended = failed


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Fake]:
    made: list[Fake] = []

    def make(tracked: Tracked) -> Fake:
        made.append(Fake(tracked))
        return made[-1]

    monkeypatch.setitem(TRACKERS, "wandb", make)
    return made


def test_tables_come_with_the_first_step_and_every_so_many(run: Path, made: list[Fake]) -> None:
    assert send(run, settings("wandb", answers=2), range(5)) == []
    assert made[0].got == [(0, 0), (1, 2), (2, 2), (3, 0), (4, 2)]
    assert made[0].ended is False


def test_a_failed_run_is_ended_as_failed(run: Path, made: list[Fake]) -> None:
    with pytest.raises(KeyboardInterrupt), Tracking(settings("wandb"), run, print):
        raise KeyboardInterrupt
    assert made[0].ended is True


def test_only_one_rank_sends(run: Path, made: list[Fake]) -> None:
    with Tracking(settings("wandb"), run, print, is_main=False) as tracking:
        tracking.step(1, METRICS)
    assert made == [] and not (run / "trackers").exists()


@pytest.mark.parametrize("error", [OSError("no network"), SystemExit(3), ValueError(HOSTILE)])
def test_a_tracker_that_fails_is_named_once(
    error: BaseException, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Fake] = []

    def make(tracked: Tracked) -> Fake:
        made.append(Fake(tracked, fails={"log 2": error}))
        return made[-1]

    monkeypatch.setitem(TRACKERS, "wandb", make)
    (said,) = send(run, settings("wandb"), range(6))
    assert said.startswith(f"warning: tracker wandb failed with {type(error).__name__}: {error}")
    assert [step for step, _ in made[0].got] == [0, 1]


def test_a_tracker_that_cannot_be_opened_is_named(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make(tracked: Tracked) -> Fake:
        raise RuntimeError("no key")

    monkeypatch.setitem(TRACKERS, "wandb", make)
    (said,) = send(run, settings("wandb"), range(3))
    assert "RuntimeError: no key; the run goes on" in said


def test_a_tracker_that_hangs_is_left_behind(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def make(tracked: Tracked) -> Fake:
        time.sleep(30)
        return Fake(tracked)

    monkeypatch.setitem(TRACKERS, "wandb", make)
    monkeypatch.setattr(module, "LAST_WAIT_S", 0.1)
    (said,) = send(run, settings("wandb"), range(3))
    assert said.startswith("warning: tracker wandb: not done after 0.1 s")


def test_a_run_that_goes_on_repeats_nothing(run: Path, made: list[Fake]) -> None:
    send(run, settings("wandb"), [0, 1, 2, 3])
    send(run, settings("wandb"), [2, 3, 4])
    assert [[step for step, _ in fake.got] for fake in made] == [[0, 1, 2, 3], [4]]
    assert [fake.tracked.id for fake in made] == [None, "fake"]


def test_a_half_written_state_ends_nothing(run: Path, made: list[Fake]) -> None:
    (run / "trackers").mkdir()
    (run / "trackers" / "wandb.json").write_text("{", encoding="utf-8")
    (said,) = send(run, settings("wandb"), [1])
    assert "JSONDecodeError" in said


# ---------------------------------------------------------------------------------------------
# Its parts


def test_answers_are_taken_from_the_questions_in_turn() -> None:
    groups = [group("a", "1", "2", "3"), group("b", "4")]
    estimates = [
        Estimate(majority_vote(["1", "2", "1"]), (1.0, 0.0, 1.0), "1"),
        Estimate(majority_vote(["4"]), (1.0,), "4"),
    ]
    found = sampled_answers(groups, estimates, 3)
    assert [(a.question, a.text, a.answer, a.label, a.reward) for a in found] == [
        ("a", "1", "1", "1", 1.0),
        ("b", "4", "4", "4", 1.0),
        ("a", "2", "2", "1", 0.0),
    ]
    assert sampled_answers(groups, estimates, 0) == []


def test_names_that_mlflow_takes() -> None:
    assert plain("eval/train/pass@1/Level 5") == "eval/train/pass_at_1/Level 5"
    assert plain("estimator/a,b") == "estimator/a_b"


def test_a_tracker_that_is_not_installed_is_refused_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ttrl.report.trackers.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"mlflow not installed: pip install 'ttrl\[mlflow\]'"):
        refuse_absent_trackers(settings("mlflow").tracking)


def test_one_tracker_twice_is_refused() -> None:
    with pytest.raises(UserError, match="names one twice"):
        load_settings("tiny-arithmetic", overrides=['tracking.trackers=["wandb","wandb"]'])


@pytest.mark.usefixtures("own_wandb")
def test_no_key_is_asked_of_nobody(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in os.environ if n.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(run))
    monkeypatch.setenv("NETRC", str(run / "netrc"))
    (said,) = send(run, settings("wandb"), [1])
    assert "tracker wandb failed" in said and "key" in said
