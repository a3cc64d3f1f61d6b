"""The vote as a reward manager of verl: by its interface, and by the real one where it is."""

from __future__ import annotations

import asyncio
import importlib
import json
import random
import re
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
import verl_interface

from ttrl.answers import Grader
from ttrl.integrations.group_reward import Answer, GroupReward
from ttrl.types import UserError

REAL = find_spec("verl") is not None
PAGE = (Path(__file__).parents[2] / "docs" / "other_trainers.md").read_text(encoding="utf-8")


class Letters:
    """A tokenizer: a token is a character."""

    def decode(self, ids: list[int], skip_special_tokens: bool = False) -> str:
        assert skip_special_tokens
        return "".join(map(chr, ids))


@pytest.fixture(scope="module", params=["interface", "real"])
def verl(request: pytest.FixtureRequest) -> Iterator[Any]:
    """`ttrl.integrations.verl`, above the interface that verl documents, and above the real one."""
    if request.param == "real" and not REAL:
        pytest.skip("verl is not installed; it asks for an older transformers than ttrl")
    name = "ttrl.integrations.verl"
    with pytest.MonkeyPatch.context() as patch:
        for module in [n for n in sys.modules if n == name or n.split(".")[0] == "verl"]:
            if request.param == "interface":
                patch.delitem(sys.modules, module)
        if request.param == "interface":
            for module, stand_in in verl_interface.modules().items():
                patch.setitem(sys.modules, module, stand_in)
        patch.delitem(sys.modules, name, raising=False)
        found = importlib.import_module(name)
        found.real = request.param == "real"
        yield found
        sys.modules.pop(name, None)


def config(**changes: Any) -> Any:
    """What a manager reads of a run's configuration, with ``changes`` by dotted name."""
    found = {
        "actor_rollout_ref.rollout.n": 3,
        "actor_rollout_ref.rollout.val_kwargs.n": 1,
        "trainer.use_v1": True,
        "trainer.val_before_train": False,
        "trainer.test_freq": -1,
        "reward.num_workers": 1,
    } | changes
    root = SimpleNamespace()
    for key, value in found.items():
        *path, last = key.split(".")
        node = root
        for name in path:
            if not hasattr(node, name):
                setattr(node, name, SimpleNamespace())
            node = getattr(node, name)
        setattr(node, last, value)
    return root


def row(verl: Any, uid: str, session: int, question: str, answer: str) -> Any:
    """An answer as verl's agent loop hands it to the reward worker, with two padded tokens."""
    prompt, response = (torch.tensor([*map(ord, text)]) for text in (question, answer))
    padded = [torch.cat([ids, torch.zeros(2, dtype=torch.long)]) for ids in (prompt, response)]
    known = {
        "uid": uid,
        "session_id": session,
        "global_steps": 7,
        "prompt_len": len(prompt),
        "response_len": len(response),
    }
    tensors = {"prompts": padded[0], "responses": padded[1]}
    if not verl.real:
        return verl_interface.Rows([verl_interface.Row(tensors, known)])
    import numpy as np
    from tensordict import TensorDict
    from verl import DataProto

    batch = TensorDict({name: ids[None] for name, ids in tensors.items()}, batch_size=1)
    return DataProto(batch, {name: np.array([value]) for name, value in known.items()})


def made(verl: Any, kind: Any = None, **changes: Any) -> Any:
    return (kind or verl.VoteRewardManager)(config(**changes), Letters(), None)


def rewards(verl: Any, manager: Any, answers: list[tuple[str, int, str, str]]) -> list[Any]:
    """What each call gets, all of them under way together; an error stands for itself."""

    async def together() -> list[Any]:
        calls = (manager.run_single(row(verl, *answer)) for answer in answers)
        return await asyncio.gather(*calls, return_exceptions=True)

    found = asyncio.run(together())
    assert all(x["reward_extra_info"] == {} for x in found if isinstance(x, dict))
    return [x["reward_score"] if isinstance(x, dict) else x for x in found]


def boxed(answer: str) -> str:
    return rf"\boxed{{{answer}}}"


def answers_of(uid: str, *answers: str) -> list[tuple[str, int, str, str]]:
    return [(uid, i, f"What is {uid}?", boxed(a)) for i, a in enumerate(answers)]


def test_a_group_is_paid_when_it_is_there(verl: Any) -> None:
    """Answers of several questions, the same ones twice, in any order."""
    groups = [*answers_of("a", "1/2", "0.5", "2"), *answers_of("b", "7", "3", "3")]
    for seed in range(3):
        shuffled = random.Random(seed).sample(groups, len(groups))
        paid = dict(zip(shuffled, rewards(verl, made(verl), shuffled), strict=True))
        assert [paid[answer] for answer in groups] == [1, 1, 0, 0, 1, 1]


def test_rewards_are_those_of_the_group(verl: Any) -> None:
    """In the order of the sessions, with the step and the prompt."""

    class Coins(verl.VoteRewardManager):  # type: ignore[name-defined]
        estimator = "random"
        seed = 3

    texts = [boxed("1")] * 32
    answers = [("a", i, "What?", text) for i, text in enumerate(texts)]
    manager = made(verl, Coins, **{"actor_rollout_ref.rollout.n": 32})
    paid = rewards(verl, manager, answers[::-1])[::-1]
    ours = GroupReward("random", seed=3)
    assert paid == ours([Answer("What?", text, ()) for text in texts], step=7)
    assert set(paid) == {0.0, 1.0}
    assert paid != ours([Answer("What?", text, ()) for text in texts], step=8)


def test_a_question_left_out_pays_nothing(verl: Any) -> None:
    class Soft(verl.VoteRewardManager):  # type: ignore[name-defined]
        estimator = "soft"
        options: ClassVar = {"min_entropy": 0.5}

    answers = [*answers_of("a", "1", "1", "1"), *answers_of("b", "1", "1", "2")]
    paid = rewards(verl, made(verl, Soft), answers)
    assert paid == pytest.approx([0, 0, 0, 2 / 3, 2 / 3, 1 / 3])


def test_an_answer_that_never_comes(verl: Any) -> None:
    class Impatient(verl.VoteRewardManager):  # type: ignore[name-defined]
        patience_s = 0.2

    manager = made(verl, Impatient)
    found = rewards(verl, manager, [*answers_of("a", "1", "1"), *answers_of("b", "2", "2", "2")])
    assert found[2:] == [1, 1, 1]
    assert all(isinstance(x, UserError) for x in found[:2])
    assert "2 of 3 answers to question a came within 0.2 s" in str(found[0])
    assert manager.groups == {}


def test_more_than_ray_lets_in(verl: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verl, "MOST_AT_ONCE", 4)
    several = [answer for uid in "abcd" for answer in answers_of(uid, "1", "1")]
    found = rewards(verl, made(verl), several[::2])  # one of each: none is whole
    assert all("lower data.train_batch_size" in str(x) for x in found)


def test_what_an_estimator_raises_is_heard_by_all(
    verl: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Grader, "classes", lambda *_: 1 / 0)
    found = rewards(verl, made(verl), answers_of("a", "1", "1", "2"))
    assert [type(x) for x in found] == [ZeroDivisionError] * 3


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"reward.num_workers": 8}, "reward.num_workers = 8 .*set it to 1"),
        ({"trainer.use_v1": False}, "trainer.use_v1"),
        ({"actor_rollout_ref.rollout.n": 1}, "expected 2 or more"),
        ({"trainer.val_before_train": True}, "validation's answers"),
        ({"trainer.test_freq": 5}, "validation's answers"),
    ],
)
def test_what_would_keep_groups_apart_is_refused(
    verl: Any, changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(UserError, match=reason):
        made(verl, **changes)


def test_a_validation_of_as_many_answers_is_agreement(verl: Any) -> None:
    same = {"actor_rollout_ref.rollout.val_kwargs.n": 3, "trainer.test_freq": 5}
    assert rewards(verl, made(verl, **same), answers_of("a", "1", "1", "2")) == [1, 1, 0]


def test_an_estimator_that_cannot_be_had(verl: Any) -> None:
    class Scrl(verl.VoteRewardManager):  # type: ignore[name-defined]
        estimator = "scrl"

    with pytest.raises(UserError, match="reads log-probs"):
        made(verl, Scrl)


def test_it_is_registered(verl: Any) -> None:
    if not verl.real:
        assert verl_interface.REGISTERED["ttrl"] is verl.VoteRewardManager
        return
    from verl.experimental.reward_loop.reward_manager import get_reward_manager_cls

    assert get_reward_manager_cls("ttrl") is verl.VoteRewardManager


def options_of_the_page() -> list[str]:
    """The command line that docs/other_trainers.md shows."""
    return re.findall(r"^    ((?:reward|trainer)\.\S+=\S+)$", PAGE, re.M)


def test_the_options_of_the_page(verl: Any) -> None:
    options = dict(option.split("=") for option in options_of_the_page())
    assert len(options) == 6
    assert options["reward.reward_manager.module.path"] == f"pkg://{verl.__name__}"
    assert hasattr(verl, options["reward.reward_manager.name"])
    read = {
        key: json.loads(value.lower()) for key, value in options.items() if "manager" not in key
    }
    assert len(read) == 3 and made(verl, **read).votes == 3


def test_the_example_of_the_page(verl: Any) -> None:
    (code,) = (c for c in re.findall(r"^```python\n(.*?)^```", PAGE, re.M | re.S) if "verl" in c)
    names: dict[str, Any] = {}
    exec(code, names)
    paid = rewards(verl, made(verl, names["Soft"]), answers_of("a", "1", "1", "2"))
    assert paid == pytest.approx([2 / 3, 2 / 3, 1 / 3])


@pytest.mark.skipif(not REAL, reason="verl is not installed; it asks for an older transformers")
def test_verls_own_reward_worker_pays_the_vote() -> None:
    """From the options of a command line to the actors that Ray runs."""
    import ray
    from hydra import compose, initialize_config_module
    from verl.experimental.reward_loop import RewardLoopManager

    from ttrl.models.pretrained import TINY_BASE

    with initialize_config_module("verl.trainer.config", version_base=None):
        chosen = compose(
            "ppo_trainer",
            [
                f"actor_rollout_ref.model.path={TINY_BASE}",
                "actor_rollout_ref.rollout.n=3",
                *options_of_the_page(),
            ],
        )
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(TINY_BASE)
    ray.init(num_cpus=2, include_dashboard=False, configure_logging=False)
    try:
        (worker,) = RewardLoopManager(chosen).reward_loop_worker_handles
        calls = []
        for uid, session, question, answer in answers_of("a", "1/2", "0.5", "2"):
            ids = [tokenizer(text).input_ids for text in (question, answer)]
            data = row(SimpleNamespace(real=True), uid, session, question, answer)
            del data.batch["prompts"], data.batch["responses"]
            data.batch["prompts"], data.batch["responses"] = (torch.tensor([x]) for x in ids)
            data.non_tensor_batch["prompt_len"][0] = len(ids[0])
            data.non_tensor_batch["response_len"][0] = len(ids[1])
            calls.append(worker.compute_score.remote(data))
        assert [found["reward_score"] for found in ray.get(calls, timeout=120)] == [1, 1, 0]
    finally:
        ray.shutdown()
