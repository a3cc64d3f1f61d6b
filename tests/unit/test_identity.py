"""Whether a checkpoint is of the run that goes on with it, or in whose folder it lies."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from ttrl.run.identity import Identity, refuse_foreign
from ttrl.settings.recipe import load_settings
from ttrl.types import UserError

HERE = Path("runs/mine/checkpoints/step_00002")


def identity(*overrides: str) -> Identity:
    """That of a run of two agents with a policy each."""
    own = ["rollout.workflow=own.py:Own", "rollout.policies=per_agent", *overrides]
    return Identity(
        settings=load_settings("tiny-arithmetic", overrides=own),
        estimator="majority",
        replayed=False,
        questions="q",
        model={"config": "c", "weights": "w"},
        sizes={"weights/a": 4, "agent_1/weights/a": 4},
    )


def test_a_plan_with_another_number_of_agents_is_named() -> None:
    """The workflow's file was edited; the model is what it was."""
    saved = identity().as_json()
    identity().refuse_other(saved, HERE)
    more = replace(identity(), sizes={**saved["sizes"], "agent_2/weights/a": 4})
    with pytest.raises(UserError, match=r"own\.py:Own' has 3 agents .* each, and had 2 when"):
        more.refuse_other(saved, HERE)
    other = replace(identity(), sizes={**saved["sizes"], "weights/b": 4})
    with pytest.raises(
        UserError, match=r"the set of parameters of model\.path = 'tiny-base' is not"
    ):
        other.refuse_other(saved, HERE)


def test_a_checkpoint_belongs_to_the_settings_of_its_folder() -> None:
    saved = identity().as_json()
    for free in ("max_steps=99", "checkpoint.keep=7", "model.path=moved/tiny-base"):
        refuse_foreign(saved, identity(free).settings, HERE)
    with pytest.raises(
        UserError, match=r"another run .* which has seed = 3 \(was 0\): put it back"
    ):
        refuse_foreign(saved, identity("seed=3").settings, HERE)
