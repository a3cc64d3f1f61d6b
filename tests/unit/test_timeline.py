"""A run's memory, played on a card of the stated size: in its order, and in one that was wrong."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from conversations import Asked, begun, question, settings
from plans import plan_of
from test_plan import MACHINES, RECIPES, job_of

from ttrl.plan.choose import problems
from ttrl.plan.host import host_memory
from ttrl.plan.memory import Job
from ttrl.plan.speed import seconds
from ttrl.plan.timeline import PUSH, START, STEP, lacking, order, play
from ttrl.types import UserError

A100_40GB_GIB = 39.4

OLD_START = ("load", "start", "rollout", "offload", "push", "rollout", "verify")
"""As it was: the engine before the trainer had made room, and the first push into one that is
awake."""
OLD_RESUME = ("reload", "offload", *PUSH)
"""As it was: the policy came back beside an engine that was awake."""
REFUSED = {
    "8xa100-40gb/qwen2.5-math-7b",
    "8xa100-40gb/qwen2.5-7b",
    "8xa100-40gb/llama3.1-8b-instruct",
    "8xa100-40gb/qwen3-8b",
    "8xa100-40gb/r1-llama-8b",
    "1x40gb/qwen2.5-math-1.5b",
}
"""Those that vLLM refused to start for, in the order as it was."""
OLD = (
    *sorted(REFUSED),
    "8xa100-40gb/qwen2.5-math-1.5b",
    "1x40gb/qwen2.5-math-7b-lora",
    "1x24gb/qwen2.5-math-1.5b-lora",
)
"""The recipes that there were."""


def old_job(recipe: str) -> Job:
    """With the share that it had, and each GPU with an engine of its own."""
    shares = {
        "1x40gb/qwen2.5-math-7b-lora": 0.55,
        "1x40gb/qwen2.5-math-1.5b": 0.75,
        "1x24gb/qwen2.5-math-1.5b-lora": 0.75,
    }
    parallel = 2 if recipe.endswith("r1-llama-8b") else 1
    return job_of(
        recipe,
        f"rollout.gpu_memory_share={shares.get(recipe, 0.85)}",
        f"rollout.tensor_parallel={parallel}",
    )


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("resumed", [False, True], ids=["new", "resumed"])
@pytest.mark.parametrize("labels", ["votes", "teacher"])
def test_every_recipe_runs_to_its_second_step(recipe: str, resumed: bool, labels: str) -> None:
    job = job_of(recipe, f"reward.labels={labels}")
    played = play(job, order(job, resumed=resumed))
    assert list(lacking(job, played)) == []
    assert all(p.total + p.wanted <= job.machine.usable for p in played)


@pytest.mark.parametrize("algorithm", ["ppo", "prime"])
@pytest.mark.parametrize(
    "recipe",
    [
        "8xa100-40gb/qwen2.5-math-1.5b",
        "8xa100-40gb/qwen2.5-math-7b",
        "1x24gb/qwen2.5-math-1.5b-lora",
    ],
)
@pytest.mark.parametrize("resumed", [False, True], ids=["new", "resumed"])
def test_a_second_model_fits_beside_the_policy(recipe: str, algorithm: str, resumed: bool) -> None:
    job = job_of(recipe, f"algorithm={algorithm}")
    played = play(job, order(job, resumed=resumed))
    assert [p.name for p in played].count("credit") == 2 * 3
    assert list(lacking(job, played)) == []


def test_a_second_model_is_counted_as_the_policy_is() -> None:
    """Qwen2.5-Math-7B in eighths: 2 + 2 + 4 + 8 bytes per parameter; a critic has no head.

    Its optimizer is away while the policy is trained, and the policy's while it is."""
    whole, head, hidden = 7_615_616_512, 152064 * 3584, 3584
    share = math.ceil((whole - head + hidden) / 8)
    job = job_of(
        "8xa100-40gb/qwen2.5-math-7b", "algorithm=ppo", "memory.offload_during_rollout=true"
    )
    played = play(job, order(job))
    credit = [p for p in played if p.name == "credit"]
    update = [p for p in played if p.name == "backward"]
    assert credit[-1].items["critic parameters"] == pytest.approx(2 * share, abs=2)
    assert credit[-1].items["critic master weights"] == pytest.approx(4 * share, abs=4)
    assert credit[-1].items["critic moments"] == pytest.approx(8 * share, abs=8)
    assert "moments" not in credit[-1].items and "master weights" not in credit[-1].items
    assert "logits chunk" not in credit[0].items
    assert update[-1].items["critic parameters"] == pytest.approx(2 * share, abs=2)
    assert "critic moments" not in update[-1].items
    prime = job_of("8xa100-40gb/qwen2.5-math-7b", "algorithm=prime")
    items = next(p.items for p in play(prime, order(prime)) if p.name == "credit")
    assert items["PRM parameters"] == items["reference model"] == 2 * whole // 8
    assert "logits chunk" in items


EACH = ("rollout.workflow=debate", "rollout.agents=3", "rollout.rounds=2", "rollout.votes=36")
EACH += ("rollout.policies=per_agent", "policy.trained_samples=32")


@pytest.mark.parametrize("offload", [True, False])
def test_policies_of_agents_are_counted_as_the_first_is(offload: bool) -> None:
    """Qwen2.5-Math-1.5B in eighths, three times, of which one is whole at a time."""
    share = 1_543_714_304 / 8
    job = job_of(
        "8xa100-40gb/qwen2.5-math-1.5b",
        *EACH,
        f"memory.offload_during_rollout={str(offload).lower()}",
        "memory.offload_optimizer=false",
    )
    played = play(job, order(job))
    last = [p for p in played if p.name == "optimizer"][-1].items  # of the further ones
    for part, bytes in {"parameters": 2, "gradients": 2, "master weights": 4, "moments": 8}.items():
        count = 2 if part == "parameters" or not offload else 1
        assert last[f"agents' {part}"] == pytest.approx(count * bytes * share, rel=1e-6)
    assert ("moments" in last) == (not offload)
    first = [p for p in played if p.name == "optimizer"][-2].items  # the policy's own
    assert ("agents' moments" in first) == (not offload)
    loads = [p.items for p in played if p.name == "load"]
    assert [items.get("agents' parameters", 0) > 0 for items in loads[-3:]] == [False, True, True]
    assert all(("master weights" in items) == (not offload) for items in loads[-2:])
    rollout = [p for p in played if p.name == "rollout"][-1].items
    assert rollout["agents' parameters"] == pytest.approx(2 * 2 * share, rel=1e-6)
    assert ("agents' moments" in rollout) == (not offload)
    if offload:
        found = host_memory(job)
        assert found["optimizer state"] == pytest.approx(8 * 3 * 12 * share, rel=1e-6)
        assert found["a checkpoint's copy"] == found["optimizer state"]


def test_the_adapters_of_agents_share_their_base() -> None:
    job = job_of("1x24gb/qwen2.5-math-1.5b-lora", *EACH)
    played = play(job, order(job))
    items = [p for p in played if p.name == "optimizer"][-1].items
    assert items["agents' parameters"] == 2 * 4 * job.adapters
    assert items["agents' moments"] == 2 * 8 * job.adapters  # in one process nothing goes away
    assert items["agents' gradients"] == 4 * job.adapters  # but those that have been used


def test_an_agents_weights_are_pushed_before_it_speaks() -> None:
    job = job_of("8xa100-40gb/qwen2.5-math-1.5b", *EACH)
    assert job.turns.speakers == (0, 1, 2, 2, 1, 0)
    assert job.turns.pushes == 4
    one = job_of("8xa100-40gb/qwen2.5-math-1.5b", *EACH, "rollout.policies=shared")
    assert one.turns.pushes == 0
    assert seconds(job)["push"] == pytest.approx(5 * seconds(one)["push"])
    assert order(job).count("push") == order(one).count("push") + 3 * 4


@pytest.mark.parametrize(
    "workflow",
    [("debate", 3, 3, 18), ("debate", 2, 2, 8), ("mixture", 3, 1, 8), ("chain", 4, 1, 8)],
)
def test_agents_are_asked_in_the_order_of_the_conversation(
    workflow: tuple[str, int, int, int],
) -> None:
    name, agents, rounds, votes = workflow
    rollout = {"policies": "per_agent", "max_new_tokens": 40, "workflow": name}
    rollout |= {"agents": agents, "rounds": rounds, "votes": votes}
    own = settings(rollout=rollout)
    ask = Asked(lambda prompt, i: "7")
    conversation = begun(own)
    conversation.run(ask, [question()], 1, lambda group: None)
    assert list(conversation.speakers) == [params.policy for _, params in ask.calls]


OWN = """
from pathlib import Path

from ttrl.rollout.workflows import Act, Conversation

class Editors(Conversation):
    def turns(self):
        with Path({made!r}).open("a") as made:
            made.write("once ")
        edit = "{{question}} {{answers}}"
        return [
            [Act("writer"), Act("writer"), Act("writer")],
            [Act("chief", edit, sees=[(0, 0), (0, 1)], agent="writer 2")],
        ]

class Free(Conversation):
    turns = Editors.turns

    def run(self, ask, questions, step, on_group):
        return []
"""
SMALL = "8xa100-40gb/qwen2.5-math-1.5b"


def test_agents_of_a_plan_of_ones_own_are_planned_and_it_is_made_once(tmp_path: Path) -> None:
    """Three of them, as in the debate of three; and nothing is asked of its code again."""
    (tmp_path / "own.py").write_text(OWN.format(made=str(tmp_path / "made")))
    room = ("policy.trained_samples=64", "rollout.policies=per_agent")
    found = plan_of(SMALL, f"rollout.workflow={tmp_path / 'own.py'}:Editors", *room)
    assert (tmp_path / "made").read_text() == "once "
    assert found.job.turns.speakers == (0, 1, 2, 2) and found.job.turns.pushes == 2
    debate = plan_of(SMALL, *EACH)
    held = {name for phase in debate.phases for name in phase.items if name.startswith("agents'")}
    for name in held:
        own, known = (
            max(phase.items.get(name, 0) for phase in plan.phases) for plan in (found, debate)
        )
        assert own == known > 0


def test_agents_that_nobody_knows_are_not_planned(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN.format(made=str(tmp_path / "made")))
    own = (f"rollout.workflow={tmp_path / 'own.py'}:Free", "rollout.policies=per_agent")
    with pytest.raises(UserError, match="has a run of its own: subclass Conversation without one"):
        plan_of(SMALL, *own)


def test_an_a100_of_40_gb_has_39_4() -> None:
    assert MACHINES["8xa100-40gb"].usable / 2**30 == pytest.approx(A100_40GB_GIB, abs=0.05)


@pytest.mark.parametrize("recipe", OLD)
def test_in_the_old_order_vllm_did_not_start_for_six_of_nine(recipe: str) -> None:
    job = old_job(recipe)
    red = list(lacking(job, play(job, OLD_START)))
    assert bool(red) == (recipe in REFUSED)
    assert not red or red[0].startswith("start: vLLM wants ")  # it ends there


@pytest.mark.parametrize("recipe", OLD)
def test_with_room_made_first_it_starts_for_all(recipe: str) -> None:
    job = old_job(recipe)
    assert list(lacking(job, play(job, START[: START.index("sleep")]))) == []


@pytest.mark.parametrize(
    "recipe", sorted(r for r in REFUSED if "7b" in r or r.endswith("3.1-8b-instruct"))
)
def test_a_push_into_an_engine_that_is_awake_did_not_fit(recipe: str) -> None:
    job = old_job(recipe)
    red = list(lacking(job, play(job, ("load", "offload", "start", "rollout", "push"))))
    assert [text.partition(" needs")[0] for text in red] == ["push"]
    assert list(lacking(job, play(job, (*START, "rollout")))) == []


@pytest.mark.parametrize("recipe", sorted(REFUSED))
def test_a_policy_that_came_back_beside_an_engine_that_was_awake_did_not_fit(recipe: str) -> None:
    job = old_job(recipe)
    red = list(lacking(job, play(job, (*START, *OLD_RESUME))))
    assert any(text.startswith("reload needs ") for text in red)


def test_memory_that_was_offloaded_comes_back_as_much() -> None:
    job = job_of("8xa100-40gb/qwen2.5-7b")
    played = play(job, (*START, *STEP, *STEP))
    backs = [p for p in played if p.name == "reload"]
    assert "moments" not in backs[0].items  # there are none before the first update
    assert backs[1].items["moments"] == 8 * 7_615_616_512 // 8
    pushes = [p.total for p in played if p.name == "push"]
    assert pushes == [pushes[0]] * 3


def test_a_share_that_the_trainer_does_not_leave_is_said() -> None:
    job = job_of("8xa100-40gb/qwen2.5-7b", "rollout.gpu_memory_share=0.95")
    assert next(problems(job)).startswith(
        "start: vLLM wants 37.4 GiB free (rollout.gpu_memory_share = 0.95), and "
    )
