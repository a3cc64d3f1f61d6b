"""Steps of PPO and PRIME that two sides compute: ranks and one process, or a GPU and a CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tiny_models import answer_of, figures_of, make_settings, prompt_of, update

from ttrl.credit.make import make_credit
from ttrl.learner.backends import make_trained_model
from ttrl.learner.trained_model import TrainedModel
from ttrl.rewards.vote import majority_vote
from ttrl.settings import Settings
from ttrl.system.ranks import Ranks
from ttrl.types import Completion, CompletionGroup, Estimate, FinishReason, Question, TrainSample

CREDITS: dict[str, dict[str, dict[str, Any]]] = {
    "ppo": {
        "reward": {"advantages": "gae", "kl_coef": 0.1, "kl_target": 0.01, "kl_horizon": 20.0},
        "critic": {"learning_rate": 3e-3, "gae_lambda": 0.9, "value_clip": 0.05},
        "policy": {"epochs_per_rollout": 2},
    },
    "ppo-lora": {
        "reward": {"advantages": "gae"},
        "critic": {"learning_rate": 3e-3},
        "lora": {"rank": 3},
    },
    "prime": {"reward": {"advantages": "prime"}, "prime": {"learning_rate": 3e-3}},
    "prime-lora": {
        "reward": {"advantages": "prime"},
        "prime": {"learning_rate": 3e-3, "update": "before"},
        "lora": {"rank": 3},
    },
}
"""Changed settings of each; two updates per step, of four sequences and of two."""


def credits_of(ranks: int) -> list[str]:
    """Two ranks compute all cases; one and four those without adapters."""
    return [case for case in CREDITS if ranks == 2 or "lora" not in case]


def credit_settings(case: str, model: Path) -> Settings:
    """Settings of a case that begins with ``model``."""
    changes = CREDITS[case]
    policy = {"sequences_per_update": 4, "trained_samples": 3, **changes.get("policy", {})}
    return make_settings(
        model={"path": str(model)},
        memory={"tokens_per_batch": 40},
        optimizer={"grad_clip": 1e3},
        **{**changes, "policy": policy},
    )


def credit_steps(policy: TrainedModel, samples: list[TrainSample]) -> dict[str, Any]:
    """Two steps on two questions with three answers each; returns all that came out."""
    credit = make_credit(policy.settings, policy)
    groups = [_group(samples[i : i + 3]) for i in (0, 3)]
    estimates = [
        Estimate(majority_vote(["1", "1", "0"]), (1.0, 0.0, 1.0), "1"),
        Estimate(majority_vote(["1", "0", "0"]), (0.0, 1.0, 1.0), "0", weight=0.5),
    ]
    found: dict[str, Any] = {"advantages": [], "results": [], "metrics": []}
    for step in (1, 2):
        assigned = credit.assign(groups, estimates, step)
        found["advantages"] += [a for sample in assigned.samples for a in sample.advantages]
        found["metrics"] += [dict(assigned.metrics)]
        for results in (*assigned.updates.values(), update(policy, assigned.samples, 1e-3)):
            found["results"] += [figures_of(result) for result in results]
    models = (policy, *credit.models.values())
    found["steps_taken"] = [model.steps_taken for model in models]
    found["moved"] = [
        sum(float(p.abs().sum()) for p in model.shards(("exp_avg",)).values()) for model in models
    ]
    return found


def local_steps(model: Path, samples: list[TrainSample]) -> dict[str, Any]:
    """The steps of both algorithms, by one process on its device."""
    found = {}
    for case in ("ppo", "prime"):
        policy = make_trained_model(credit_settings(case, model), Ranks())
        found[case] = {**credit_steps(policy, samples), "device": str(policy.model.device)}
    return found


def _group(samples: list[TrainSample]) -> CompletionGroup:
    completions = tuple(
        Completion(answer_of(s), s.logprobs, "", FinishReason.STOP) for s in samples
    )
    prompt = prompt_of(samples[0])
    return CompletionGroup(Question(samples[0].question_id, "", prompt), completions, 1)
