"""Policies of several agents: each is trained on its own answers, as if it were alone."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_models import figures_of, make_settings, near_samples, saved, tiny_model

from ttrl.learner.backends import make_trained_model
from ttrl.learner.policies import Policies
from ttrl.learner.snapshots import WeightSnapshots
from ttrl.models.packed_model import load_policy_model
from ttrl.models.saved_policies import saved_policies
from ttrl.settings import ModelSettings, Settings
from ttrl.system.ranks import Ranks
from ttrl.types import TrainSample, UserError

RATE = 3e-4
AGENTS = ("writer 0", "writer 1", "editor 0")
CASES: dict[str, dict[str, object]] = {
    "plain": {},
    "twice, with a reference": {"kl_coef": 0.5, "epochs_per_rollout": 2},
    "a bonus that moves": {"entropy_target": 10.0, "entropy_coef_step": 0.1},
    "adapters": {"lora_rank": 3, "kl_coef": 0.3},
}


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> ModelSettings:
    """The model that all begin as."""
    return saved(tiny_model(), tmp_path_factory.mktemp("start"))


@pytest.fixture(scope="module")
def samples(start: ModelSettings) -> list[TrainSample]:
    """Ten samples; the agents have written five, three and two of them, in turn."""
    found = near_samples(load_policy_model(start))
    writers = (0, 1, 0, 2, 0, 1, 0, 2, 1, 0)
    return [replace(s, policy=by) for s, by in zip(found, writers, strict=True)]


def of(case: str, start: ModelSettings) -> Settings:
    if "lora_rank" in CASES[case] and importlib.util.find_spec("peft") is None:
        pytest.skip("peft is not installed")
    update = {"sequences_per_update": 2, **CASES[case]}
    return make_settings(update, model={"path": start.path})


def policies(settings: Settings, agents: tuple[str, ...] = AGENTS) -> Policies:
    return Policies.of(settings, make_trained_model(settings, Ranks()), agents)


def equal(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


@pytest.mark.parametrize("case", CASES)
def test_each_is_what_its_own_answers_alone_would_make_of_it(
    case: str, start: ModelSettings, samples: list[TrainSample]
) -> None:
    settings = of(case, start)
    several = policies(settings)
    found = [several.update(samples, RATE) for _ in range(2)]
    assert list(several.models) == list(found[0]) == ["policy", "agent_1", "agent_2"]
    for number, (name, model) in enumerate(several.models.items()):
        alone = policies(settings, ())
        own = [replace(s, policy=0) for s in samples if s.policy == number]
        expected = [alone.update(own, RATE)["policy"] for _ in range(2)]
        assert equal(model.shards(), alone.models["policy"].shards())
        assert several.objectives[name].state() == alone.objectives["policy"].state()  # type: ignore[attr-defined]
        for step, by_hand in zip(found, expected, strict=True):
            assert list(map(figures_of, step[name])) == list(map(figures_of, by_hand))
            assert len(by_hand) == -(-len(own) // 2) * settings.policy.epochs_per_rollout


def test_who_has_written_nothing_stays_as_it_is(
    start: ModelSettings, samples: list[TrainSample]
) -> None:
    several = policies(of("plain", start))
    before = {name: model.shards() for name, model in several.models.items()}
    assert all(equal(before["policy"], shards) for shards in before.values())
    found = several.update([s for s in samples if s.policy == 1], RATE)
    assert {name: len(steps) for name, steps in found.items()} == {
        "policy": 0,
        "agent_1": 2,
        "agent_2": 0,
    }
    same = {n: equal(before[n], m.shards()) for n, m in several.models.items()}
    assert same == {"policy": True, "agent_1": False, "agent_2": True}


def test_whose_update_is_not_finite_is_said(
    start: ModelSettings, samples: list[TrainSample]
) -> None:
    """The one before it has learned, and the one after it has not."""
    several = policies(of("plain", start))
    before = {name: model.shards() for name, model in several.models.items()}
    bad = [replace(s, weight=float("nan")) if s.policy == 1 else s for s in samples]
    with pytest.raises(FloatingPointError, match=r"^agent_1: the update is not finite: question"):
        several.update(bad, RATE)
    same = {n: equal(before[n], m.shards()) for n, m in several.models.items()}
    assert same == {"policy": False, "agent_1": True, "agent_2": True}
    with pytest.raises(FloatingPointError, match=r"^the update is not finite"):
        policies(of("plain", start), ()).update([replace(bad[1], policy=0)], RATE)


def test_adapters_share_their_frozen_base(start: ModelSettings) -> None:
    several = policies(of("adapters", start))
    frozen = [
        {n: p.data_ptr() for n, p in model.model.named_parameters() if not p.requires_grad}
        for model in several.models.values()
    ]
    assert frozen[0] and frozen[0] == frozen[1] == frozen[2]


def test_a_run_goes_back_to_the_weights_of_all(
    start: ModelSettings, samples: list[TrainSample]
) -> None:
    several = policies(of("plain", start))
    snapshots = WeightSnapshots(several, steps_per_pass=1)
    several.update(samples, RATE)
    after = {name: model.shards(("weights",)) for name, model in several.models.items()}
    snapshots.after_step(1)
    several.update(samples, RATE)
    snapshots.after_step(2)
    other = WeightSnapshots(policies(of("plain", start)), steps_per_pass=1)
    other.load_state(snapshots.state())
    assert other.shard_sizes() == {k: len(shard) for k, shard in snapshots.shards().items()}
    other.load_shards(snapshots.shards())
    for kept in (snapshots, other):
        assert kept.restore() == 1
        assert isinstance(kept.model, Policies)
        for name, model in kept.model.models.items():
            assert equal(model.shards(("weights",)), after[name])


def test_one_policy_is_saved_and_kept_as_ever(start: ModelSettings) -> None:
    one = policies(of("plain", start), ())
    assert list(one.saved()) == ["model"] and one.stateful() == {} and one.further == {}
    assert one.shard_sizes() == one.models["policy"].shard_sizes()
    several = policies(of("plain", start))
    assert list(several.saved()) == ["model", "agent_1", "agent_2"]
    assert list(several.stateful()) == [
        *("agent_1", "agent_1_objective"),
        *("agent_2", "agent_2_objective"),
    ]
    assert several.called(AGENTS) == [
        "writer 0 (policy)",
        "writer 1 (agent_1)",
        "editor 0 (agent_2)",
    ]


def test_what_a_run_has_left_is_read_agent_by_agent(tmp_path: Path) -> None:
    model = tiny_model()
    first = saved(model, tmp_path / "model")
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1.0)
    saved(other, tmp_path / "agent_1")
    found = saved_policies(first, 2)
    for policy, of_it in zip(found, (model, other), strict=True):
        expected = dict(of_it.named_parameters())
        assert equal(dict(policy.named_weights()), {n: p.detach() for n, p in expected.items()})
    for path, count in (("model", 3), ("agent_1", 2)):
        settings = ModelSettings(path=str(tmp_path / path), dtype="float32")
        with pytest.raises(UserError, match=rf"measures {count} models: expected RUN/model of a r"):
            saved_policies(settings, count)
