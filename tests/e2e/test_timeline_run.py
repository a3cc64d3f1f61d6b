"""What a real `Trainer` does to a GPU's memory, event by event, is what the plan's timeline says.

The trainer is the real one, and trains the embedded model on the CPU. On the card are numbers:
those of a scripted vLLM, and of a policy that takes what the plan says a 7B model's share takes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import pytest
import torch
from rich.console import Console
from scripted_vllm import LOGPROB, Card, Sizes, install
from small_run import SMALL, interrupted
from step_lines import step_lines

from ttrl.learner.backends import make_second_model, make_trained_model
from ttrl.learner.local import LocalModel
from ttrl.learner.objective import Objective
from ttrl.learner.trained_model import TrainedModel
from ttrl.models.pretrained import load_bare_outline
from ttrl.plan import Machine, ModelShape
from ttrl.plan.memory import Job, engine_weights, loading, prefill, push, states
from ttrl.plan.second_model import LEAVES
from ttrl.plan.timeline import RESUME, START, STEP, VERIFY, order
from ttrl.report.display import Display
from ttrl.rewards.estimators.verifier import Verified
from ttrl.run.run_folder import RunFolder
from ttrl.settings import ModelSettings, Settings
from ttrl.settings.recipe import load_settings
from ttrl.system.ranks import Ranks
from ttrl.trainer import train
from ttrl.types import Question, TrainSample, UpdateResult, UserError

RECIPE = "8xa100-40gb/qwen2.5-math-7b"
CONFIG = Path(__file__).parents[1] / "unit" / "model_configs" / "qwen2.5-math-7b.json"


@pytest.fixture(scope="module")
def job() -> Job:
    outline = load_bare_outline(ModelSettings(path=str(CONFIG)))
    return Job(ModelShape.of(outline), load_settings(RECIPE), Machine(8, 40))


@pytest.fixture
def card(job: Job, monkeypatch: pytest.MonkeyPatch) -> Card:
    """A GPU as the plan sees it, with a vLLM that can be started, and a trainer that uses it."""
    card = Card(job.machine.usable)
    card.take("CUDA", job.machine.context)
    (weights,) = engine_weights(job).values()
    itself = int(job.machine.asleep_gib * 2**30)
    install(monkeypatch, card, Sizes(weights, itself, prefill(job), sum(push(job).values())))
    monkeypatch.setattr(
        "ttrl.build.make_trained_model",
        lambda settings, ranks: accounted(settings, ranks, card, job),
    )
    return card


def accounted(settings: Settings, ranks: Ranks, card: Card, job: Job) -> LocalModel:
    """The policy in this process, which does to the card what phase offload would do."""
    sizes = states(job)
    card.happens("load")
    card.pass_through(sum(loading(job).values()))
    for name in sizes.keys() - {"moments"}:
        card.take(name, sizes[name])
    policy = make_trained_model(settings, ranks)
    assert isinstance(policy, LocalModel)
    away: dict[str, int] = {}
    update = policy.update

    def offload() -> None:
        card.happens("offload")
        away.update({name: card.held.pop(name) for name in LEAVES if name in card.held})

    def reload() -> None:
        card.happens("reload")
        for name in list(away):
            card.take(name, away.pop(name))

    def accounted_update(
        samples: Sequence[TrainSample], objective: Objective, rate: float
    ) -> list[UpdateResult]:
        card.happens("update")
        card.take("moments", sizes["moments"])
        return update(samples, objective, rate)

    def logprobs(samples: Sequence[TrainSample]) -> list[tuple[float, ...]]:
        card.happens("verify")
        return [(LOGPROB,) * len(sample.logprobs) for sample in samples]

    for replaced in (offload, reload, logprobs):
        setattr(policy, replaced.__name__, replaced)
    policy.update = accounted_update  # type: ignore[method-assign]
    return policy


def settings_of(job: Job, *overrides: str) -> Settings:
    share = f"rollout.gpu_memory_share={job.settings.rollout.gpu_memory_share}"
    every = ("rollout.engine=vllm", "checkpoint.every=1", share)
    return load_settings("tiny-arithmetic", overrides=(*SMALL, *every, *overrides))


def each_once(events: Sequence[str]) -> list[str]:
    return [event for event, _ in groupby(events)]


@pytest.mark.parametrize("algorithm", ["ppo", "prime"])
def test_a_second_model_is_trained_when_the_timeline_says(
    algorithm: str, job: Job, card: Card, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def watched(policy: TrainedModel, *arguments: object, **options: bool) -> TrainedModel:
        model = make_second_model(policy, *arguments, **options)
        update = model.update

        def noted(*parts: object) -> list[UpdateResult]:
            card.happens("credit")
            return update(*parts)

        model.update = noted  # type: ignore[method-assign,assignment]
        return model

    monkeypatch.setattr("ttrl.credit.make.make_second_model", watched)
    settings = settings_of(job, f"algorithm={algorithm}")
    train(settings, RunFolder(tmp_path / "run"), Display(Console(quiet=True)))
    *events, _, _, _ = card.events
    assert events == each_once(order(replace(job, settings=settings)))


@pytest.mark.parametrize(
    "workflow",
    [
        ("rollout.workflow=debate", "rollout.agents=2", "rollout.rounds=2"),
        ("rollout.workflow=debate", "rollout.agents=2", "rollout.rounds=3", "rollout.votes=12"),
        ("rollout.workflow=chain", "rollout.agents=3", "rollout.votes=6"),
    ],
)
def test_the_policies_of_agents_speak_and_learn_when_the_timeline_says(
    workflow: tuple[str, ...],
    job: Job,
    card: Card,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def watched(policy: TrainedModel, *arguments: object, **options: int) -> TrainedModel:
        model = make_second_model(policy, *arguments, **options)  # type: ignore[arg-type]
        update = model.update

        def noted(*parts: object) -> list[UpdateResult]:
            card.happens("agents")
            return update(*parts)  # type: ignore[arg-type]

        model.update = noted  # type: ignore[method-assign,assignment]
        return model

    monkeypatch.setattr("ttrl.learner.policies.make_second_model", watched)
    settings = settings_of(job, *workflow, "rollout.policies=per_agent", "data.held_out=none")
    train(settings, RunFolder(tmp_path / "run"), Display(Console(quiet=True)))
    expected = each_once(order(replace(job, settings=settings)))
    assert card.events[: len(expected)] == expected
    assert card.events[-2:] == ["sleep", "close"]


@pytest.mark.parametrize("labels", ["votes", "teacher"])
def test_a_run_does_what_the_timeline_says(
    labels: str, job: Job, card: Card, tmp_path: Path
) -> None:
    settings = settings_of(job, f"reward.labels={labels}", "reward.teacher_decay=0.5")
    train(settings, RunFolder(tmp_path / "run"), Display(Console(quiet=True)))
    *events, measured, slept, closed = card.events
    assert events == each_once(order(replace(job, settings=settings)))
    assert (measured, slept, closed) == ("rollout", "sleep", "close")  # the model is saved last


def test_a_reward_model_judges_when_the_timeline_says(
    job: Job, card: Card, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    verify = Verified._verify

    def noted(self: Verified, question: Question, texts: Sequence[str]) -> list[bool]:
        card.happens("judge")
        return verify(self, question, texts)

    monkeypatch.setattr(Verified, "_verify", noted)
    own = ("reward.estimator=verified", "reward.options.verifier=tiny-prm")
    settings = settings_of(job, *own)
    train(settings, RunFolder(tmp_path / "run"), Display(Console(quiet=True)))
    *events, _, _, _ = card.events
    assert events == each_once(order(replace(job, settings=settings)))
    assert events.count("judge") == 2


def test_so_does_one_that_is_resumed(job: Job, card: Card, tmp_path: Path) -> None:
    settings = settings_of(job)
    train(settings, RunFolder(tmp_path / "run"), Display(Console(quiet=True)))
    run = interrupted(tmp_path / "run", tmp_path / "resumed", 1)
    card.events.clear()
    card.held = {"CUDA": card.held["CUDA"]}
    train(settings, RunFolder(run), Display(Console(quiet=True)), resume=True)
    *events, _, _, _ = card.events
    assert events == each_once((*START, *RESUME, *VERIFY, *STEP))
    assert each_once(order(replace(job, settings=settings), resumed=True))[: len(events)] == events


def test_a_want_of_memory_in_the_update_says_what_to_change(
    job: Job, card: Card, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_much(self: LocalModel, samples: object, objective: object, rate: float) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3.05 GiB.")

    monkeypatch.setattr(LocalModel, "update", too_much)
    with pytest.raises(UserError) as error:
        train(settings_of(job), RunFolder(tmp_path / "run"), Display(Console(quiet=True)))
    assert "out of GPU memory during the update (" in str(error.value)
    assert "lower memory.tokens_per_batch, or set memory.gradient_checkpointing" in str(error.value)
    assert card.events[-1] == "close"  # it is the only rank


def test_the_gap_of_the_first_push_is_shown(job: Job, card: Card, tmp_path: Path) -> None:
    console = Console(record=True, quiet=False, width=200)
    train(settings_of(job, "max_steps=1"), RunFolder(tmp_path / "run"), Display(console))
    assert "log-probs differ by 0 nats, logits by 0" in console.export_text()
    metrics = step_lines(tmp_path / "run")[0]
    assert metrics["mismatch/at_start"] == metrics["mismatch/at_start_logits"] == 0.0
