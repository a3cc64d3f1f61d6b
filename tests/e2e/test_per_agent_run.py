"""Runs with a policy per agent: who learns from what, and what is recorded, killed or shared."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from compared_runs import differences
from python_process import run_python
from rich.console import Console
from safetensors.torch import load_file
from small_run import SMALL, UNMEASURED, interrupted, with_labels
from step_lines import step_lines
from test_agents_run import DEBATE, OWN, SHORT, WORKFLOWS, trained

from ttrl.answers import Grader
from ttrl.build import Parts
from ttrl.evaluation import measuring
from ttrl.learner.backends import make_trained_model
from ttrl.learner.policies import Policies
from ttrl.report.display import Display
from ttrl.run.export import export
from ttrl.run.stateful import Stateful
from ttrl.settings.recipe import load_settings
from ttrl.system.ranks import Ranks
from ttrl.types import TrainSample, UpdateResult, UserError

KILLED_RUN = str(Path(__file__).with_name("killed_run.py"))
EACH = (*DEBATE, "rollout.policies=per_agent")
LASTING = (*EACH, "max_steps=4", "checkpoint.every=2", "loss.entropy_target=9")


def weights(run: Path, name: str) -> dict[str, torch.Tensor]:
    return load_file(run / name / "model.safetensors")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def test_an_agents_tokens_train_it_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trained again on its own samples by hand, each is what the run has made of it."""
    seen: list[tuple[list[TrainSample], float]] = []
    real = Policies.update

    def noted(
        policies: Policies, samples: Sequence[TrainSample], rate: float
    ) -> dict[str, list[UpdateResult]]:
        seen.append((list(samples), rate))
        return real(policies, samples, rate)

    updates = ("policy.trained_samples=8", "policy.sequences_per_update=8")
    overrides = (*UNMEASURED, *EACH, *updates)
    with monkeypatch.context() as patch:
        patch.setattr(Policies, "update", noted)
        run = trained(tmp_path / "run", *overrides)
    settings = load_settings("tiny-arithmetic", overrides=[*SMALL, *overrides])
    assert len(seen) == 2
    for number, name in enumerate(("model", "agent_1")):
        alone = Policies.of(settings, make_trained_model(settings, Ranks()))
        for samples, rate in seen:
            own = [replace(s, policy=0) for s in samples if s.policy == number]
            assert len(own) == 16  # of four questions, two trajectories and two rounds
            alone.update(own, rate)
        expected = {n: w.detach() for n, w in alone.models["policy"].named_weights()}
        assert same(weights(run, name), expected)
    assert not same(weights(run, "model"), weights(run, "agent_1"))
    # What an agent has said was sampled with the weights that are trained on it.
    metrics = step_lines(run)
    assert all(m["mismatch/max_log_ratio"] < 1e-3 for m in metrics)
    assert all(m["rollout/updates_behind"] == 0 for m in metrics)
    for line in map(json.loads, (run / "rollouts" / "step_00002.jsonl").open()):
        said = line["completions"]
        assert [c["policy"] for c in said] == [c["agent"] for c in said]
        assert line["policy_version"] == 2


def test_the_wrong_weights_would_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So the last figure above would notice an engine that stays at the first agent's."""
    monkeypatch.setattr("ttrl.rollout.pool.RolloutPool._turn_to", lambda pool, number: None)
    run = trained(tmp_path / "run", *UNMEASURED, *EACH, "optimizer.learning_rate=0.002")
    assert step_lines(run)[1]["mismatch/max_log_ratio"] > 0.01


def test_labels_are_not_seen(tmp_path: Path) -> None:
    found = []
    for labels in ("right", "wrong", "removed"):
        data = with_labels(tmp_path, labels, 8)
        run = trained(tmp_path / labels, data, "max_steps=1", *EACH)
        found.append([weights(run, name) for name in ("model", "agent_1")])
    for other in found[1:]:
        assert all(map(same, found[0], other))


@pytest.mark.parametrize("name", ["mixture", "chain", "own"])
def test_a_replay_gives_the_same_weights(name: str, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    own = (f"rollout.workflow={tmp_path / 'own.py'}:Own", "data.held_out=none")
    more = ("rollout.resample_rounds=1", "rollout.policies=per_agent")
    each = (*UNMEASURED, *WORKFLOWS.get(name, own), *more)
    recorded = trained(tmp_path / "recorded", *each)
    again = trained(tmp_path / "again", *each, replay=recorded / "rollouts")
    folders = ["model", *sorted(path.name for path in recorded.glob("agent_*"))]
    assert len(folders) == {"mixture": 4, "chain": 4, "own": 2}[name]
    for folder in folders:
        assert same(weights(recorded, folder), weights(again, folder))
    file = "rollouts/step_00002.jsonl"
    assert (again / file).read_bytes() == (recorded / file).read_bytes()
    shared = [*each, "rollout.policies=shared"]
    with pytest.raises(UserError, match="has 0 answers to question"):
        trained(tmp_path / "shared", *shared, replay=recorded / "rollouts")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run to its end, for whoever only reads it."""
    return trained(tmp_path_factory.mktemp("each") / "whole", *LASTING)


def test_killed_and_continued_it_is_the_run_that_was_not(whole: Path, tmp_path: Path) -> None:
    done = run_python(KILLED_RUN, str(tmp_path / "killed"), "3", *SMALL, *LASTING)
    assert done.returncode == -9, done.stderr
    (tmp_path / "killed" / "agent_1").mkdir()  # left by a run that was killed as it ended
    trained(tmp_path / "killed", *LASTING, resume=True)
    assert differences(whole, tmp_path / "killed") == set()
    assert same(weights(whole, "agent_1"), weights(tmp_path / "killed", "agent_1"))
    metrics = step_lines(whole)
    assert len({m["agent_1/entropy_coef"] for m in metrics}) == 4
    shards = load_file(whole / "checkpoints/step_00004/rank_00000.safetensors")
    kinds = {name.rsplit("/", 1)[0] for name in shards}
    parts = ("policy", "agent_1")
    assert {f"{p}/{k}" for p in parts for k in ("weights", "exp_avg", "exp_avg_sq")} <= kinds


@pytest.mark.parametrize("forgotten", ["agent_1", "agent_1_objective"])
def test_a_run_that_forgets_an_agent_differs(
    forgotten: str, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So the comparison above would notice."""
    left, real = interrupted(whole, tmp_path / "left", step=2), Parts.stateful

    def forgetful(parts: Parts) -> dict[str, Stateful]:
        return {name: part for name, part in real(parts).items() if name != forgotten}

    monkeypatch.setattr(Parts, "stateful", forgetful)
    trained(left, *LASTING, resume=True)
    assert "metrics" in differences(whole, left)


def test_each_agent_is_exported_and_measured(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for agent, name in enumerate(("model", "agent_1")):
        export(whole, tmp_path / f"{agent}", "newest", None, agent=agent)
        assert same(load_file(tmp_path / f"{agent}" / "model.safetensors"), weights(whole, name))
    cards = [(tmp_path / f"{agent}" / "README.md").read_text() for agent in (0, 1)]
    assert ["was not measured" in card for card in cards] == [False, True]
    assert [f"this is agent {agent}'s" in card for agent, card in enumerate(cards)] == [True] * 2
    runs = [card.partition("ttrl_run: ")[2].splitlines()[0] for card in cards]
    assert runs[1] == f"{runs[0]}/agent_1"
    with pytest.raises(UserError, match=r"--agent 2: .* no policy of that number: .* from 0 to 1"):
        export(whole, tmp_path / "2", "newest", None, agent=2)

    given = [*EACH, "rollout.max_new_tokens=32", "evaluation.samples=4", "threads=1"]
    data = str(Path(__file__).parent / "few_train.jsonl")
    given = [o for o in given if not o.startswith("data.")]
    settings = load_settings(
        "tiny-arithmetic", model=str(whole / "model"), data=data, overrides=given
    )
    asked: list[tuple[str, int]] = []
    real = measuring.RolloutPool._turn_to

    def noted(pool: measuring.RolloutPool, number: int) -> None:
        real(pool, number)
        held = dict(pool.policies[number].named_weights())
        of = [n for n in ("model", "agent_1") if same(weights(whole, n), _known(held, whole, n))]
        asked.append((*of, number))  # type: ignore[arg-type]

    monkeypatch.setattr(measuring.RolloutPool, "_turn_to", noted)
    with Grader(settings.answers) as grader, measuring.open_pool(settings, Ranks()) as pool:
        display = Display(Console(quiet=True))
        evaluation = measuring.load_evaluation(settings, grader, display)
        sampled = evaluation.sample(pool, 0, display)
    assert asked == [("model", 0), ("model", 0), ("agent_1", 1), ("agent_1", 1), ("model", 0)]
    turns = [a.turn for a in sampled[0].answers if a.turn is not None]
    assert {(turn.agent, turn.policy) for turn in turns} == {(0, 0), (1, 1)}
    assert _scaled(whole, given, data, tmp_path) == [
        q.scores["outcome"] for q in evaluation.score(sampled, 0).questions
    ]
    base = load_settings("tiny-arithmetic", data=data, overrides=given)
    with (
        pytest.raises(UserError, match="measures 2 models: expected RUN/model of a run that has"),
        measuring.open_pool(base, Ranks()),
    ):
        pass


def _scaled(whole: Path, given: Sequence[str], data: str, folder: Path) -> list[float]:
    """What `ttrl scale` says of one conversation of the agents, question by question."""
    options = [f"--set={o}" for o in given if not o.startswith("evaluation.samples")]
    command = ("-m", "ttrl.cli", "scale", str(whole / "model"), data, "--recipe=tiny-arithmetic")
    file = folder / "scaled.json"
    done = run_python(*command, "--methods=debate,majority", "--n=4", f"--json={file}", *options)
    assert done.returncode == 0, done.stderr[-4000:]
    points = {p["method"]: p["scores"] for p in json.loads(file.read_text())["points"]}
    found: list[float] = points["debate 2x2"]
    return found


def test_an_engine_in_a_process_of_its_own_is_brought_to_who_speaks(tmp_path: Path) -> None:
    far = (*UNMEASURED, *EACH, "optimizer.learning_rate=0.002")
    own = trained(tmp_path / "own", *far)
    apart = trained(tmp_path / "apart", *far, "rollout.placement=separate", "rollout.engines=2")
    for step in (1, 2):
        name = Path("rollouts") / f"step_0000{step}.jsonl"
        one, other = ([json.loads(x) for x in (run / name).open()] for run in (own, apart))
        assert [[c["text"] for c in line["completions"]] for line in one] == [
            [c["text"] for c in line["completions"]] for line in other
        ]
    assert all(m["mismatch/max_log_ratio"] < 1e-3 for m in step_lines(apart))


def _known(held: dict[str, torch.Tensor], run: Path, name: str) -> dict[str, torch.Tensor]:
    """By the names of the file, which has tied weights once."""
    return {key: held[key] for key in weights(run, name) if key in held}


@pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed is not installed"
)
@pytest.mark.parametrize("more", [(), ("lora.rank=4",)], ids=["whole", "adapters"])
def test_two_ranks_do_what_one_does(more: tuple[str, ...], tmp_path: Path) -> None:
    rates = ("optimizer.learning_rate=0.0005", "loss.kl_coef=0.05")
    overrides = (*UNMEASURED, *EACH, *rates, *more)
    options = [f"--set={o}" for o in (*SMALL, *overrides)]
    folder = tmp_path / "two"
    command = ("-m", "ttrl.cli", "train", "tiny-arithmetic", *options)
    done = run_python(*command, "--ranks=2", f"--run-dir={folder}")
    assert done.returncode == 0, done.stderr[-4000:]
    one = trained(tmp_path / "one", *overrides)
    name = Path("rollouts") / "step_00001.jsonl"
    assert (folder / name).read_bytes() == (one / name).read_bytes()
    found, expected = step_lines(folder), step_lines(one)
    for key in ("policy/loss", "agent_1/loss", "policy/grad_norm", "agent_1/grad_norm"):
        assert found[0][key] == pytest.approx(expected[0][key], rel=1e-3, abs=1e-5)
    assert all(m["mismatch/max_log_ratio"] < 1e-3 for m in found)  # the engine is at its agent's
    for model in ("model", "agent_1"):
        ours, theirs = weights(folder, model), weights(one, model)
        assert max(float((ours[k] - theirs[k]).abs().max()) for k in theirs) < 2e-3


def test_what_it_is_for_is_said(tmp_path: Path) -> None:
    own = tmp_path / "own.py"
    own.write_text(OWN + "\n    run = lambda *a: []\n")
    with pytest.raises(UserError, match="has a run of its own"):
        trained(
            tmp_path / "run", f"rollout.workflow={own}:Own", "rollout.policies=per_agent", SHORT[0]
        )
