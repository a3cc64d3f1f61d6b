"""What the plan counts among the seconds of a step."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from plans import job_of, plan_of

from ttrl.plan.memory import Job
from ttrl.plan.speed import (
    arithmetic_rate,
    decoding_seconds,
    forward_flops,
    rollout_seconds,
    step_work,
    trained_length,
    trained_rows,
)
from ttrl.plan.turns import Asked, Turns

RECIPE = "8xa100-40gb/qwen2.5-math-7b"
ROOM = ("data.max_prompt_tokens=2048", "rollout.max_new_tokens=1024")
"""Answers of 512 tokens; questions have 200."""
DEBATE = ("rollout.workflow=debate", "rollout.agents=2", "rollout.rounds=2")
CHAIN = ("rollout.workflow=chain", "rollout.agents=4")
OWN = """
from ttrl.rollout.workflows import Act, Conversation

class Own(Conversation):
    def turns(self):
        seen = [(0, 0), (0, 1)]
        return [
            [Act("writer"), Act("critic", "Doubt this: {question}")],
            [Act("writer", "{question} {critic}", [(0, 1)]), Act("judge", "{answers}", seen)],
            [Act("writer")],
        ]
"""


def test_what_a_label_source_asks_takes_time() -> None:
    recipe = "8xa100-40gb/qwen2.5-math-7b"
    votes = plan_of(recipe).seconds
    assert votes["free pass"] == 0
    own = ("reward.labels=harmony", "harmony.paraphrase=a.py:b")
    twice = plan_of(recipe, *own).seconds
    assert twice["free pass"] == twice["rollout"] == votes["rollout"]
    asked = plan_of(recipe, "reward.labels=harmony").seconds["free pass"]
    assert 0 < asked - twice["free pass"] < 0.2 * votes["rollout"]  # one short paraphrase
    read = plan_of(recipe, "reward.labels=reflection").seconds["free pass"]
    plain = plan_of(recipe, "reward.labels=reflection", "reflection.summary_tokens=0").seconds
    assert 0 < plain["free pass"] < read < votes["rollout"]


def test_remax_samples_one_answer_more() -> None:
    recipe = "8xa100-40gb/qwen2.5-math-7b"
    votes, more = (
        plan_of(recipe, *x).seconds["rollout"] for x in ((), ("reward.advantages=remax",))
    )
    # One answer to each of 8 questions, on 8 GPUs: as many tokens after each other as the votes
    # take, each as long as reading the weights and the keys of one answer.
    assert 0.5 * votes < more - votes < votes


def test_scoring_takes_its_share_of_a_forward_pass() -> None:
    recipe = "8xa100-40gb/qwen2.5-math-7b"
    of = ("policy.trained_samples=16", "policy.sequences_per_update=32")  # 8 questions: 4 updates

    def scoring(*changes: str) -> float:
        return plan_of(recipe, *of, *changes).seconds["scoring"]

    assert scoring() == 0
    own = scoring("loss.old_logprobs=policy")
    all_of_them = scoring("loss.entropy_mask=0.2")
    assert own == pytest.approx(0.75 * all_of_them)
    assert scoring("loss.old_logprobs=policy", "policy.epochs_per_rollout=2") == all_of_them
    corrected = ("loss.old_logprobs=policy", "loss.sampler_correction=truncate")
    assert scoring(*corrected) == all_of_them
    # Forward, of forward, backward and what is recomputed.
    update = plan_of(recipe, *of).seconds["update"]
    assert 0.2 * update < all_of_them < 0.4 * update


# ---------------------------------------------------------------------------------------------
# Several agents


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ((), [Asked(64, 200, True)]),
        # 16 debates: the first round has the questions' prompts, the second shows two answers.
        (DEBATE, [Asked(32, 200, True), Asked(32, 200 + 2 * 512, False)]),
        # Each sees its own answer and those of one other.
        (
            ("rollout.workflow=debate", "rollout.agents=4", "rollout.rounds=2", "agents.others=1"),
            [Asked(32, 200, True), Asked(32, 200 + 2 * 512, False)],
        ),
        (
            ("rollout.workflow=mixture", "rollout.agents=3"),
            [Asked(48, 200, True), Asked(16, 200 + 3 * 512, False)],
        ),
        (
            CHAIN,
            [
                Asked(16, 200, True),
                Asked(16, 200 + 512, False),
                Asked(16, 200 + 2 * 512, False),
                Asked(16, 200 + 3 * 512, False),
            ],
        ),
        # More is cut.
        (
            (*CHAIN, "data.max_prompt_tokens=1000"),
            [Asked(16, 200, True), Asked(16, 712, False), *[Asked(16, 1000, False)] * 2],
        ),
    ],
)
def test_what_a_question_is_asked(overrides: tuple[str, ...], expected: list[Asked]) -> None:
    assert list(job_of(RECIPE, *ROOM, *overrides).asked) == expected


def test_a_plan_of_ones_own_is_counted(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    own = f"rollout.workflow={tmp_path / 'own.py'}:Own"
    assert job_of(RECIPE, *ROOM, own, "rollout.votes=60").asked == (
        Asked(12, 200, True),
        Asked(12, 200, False),  # reads the question in words of its own
        Asked(24, (200 + 512 + 200 + 2 * 512) / 2, False),
        Asked(12, 200, False),
    )


def test_turns_are_decoded_one_after_the_other_and_their_prompts_read_once_each() -> None:
    job = job_of(RECIPE, *ROOM, *DEBATE)
    first, second = (decoding_seconds(job, 32, 1024, prompt) for prompt in (200, 1224))
    # 8 questions, 32 prompts of each, on 8 GPUs.
    read = 32 * 1224 * forward_flops(job, 1224) / arithmetic_rate(job)
    assert read == pytest.approx(32 * 1224 * 2 * job.shape.body / (0.4 * 312e12), rel=0.05)
    assert rollout_seconds(job) == pytest.approx(first + second + read)
    alone = rollout_seconds(job_of(RECIPE, *ROOM))
    assert alone == decoding_seconds(job, 64, 1024)
    # Half as many at a time take more than half as long, as weights are read for each token.
    assert first > alone / 2 and second > first
    assert rollout_seconds(job) > 1.5 * alone


def slow_rows(job: Job) -> list[tuple[float, float]]:
    """(rows, length) of each answer to a question, one by one, where no prompt is shared."""
    return [
        (asked.prompt + 512, asked.prompt + 512)
        for asked in job.asked
        for _ in range(asked.answers)
    ]


def test_each_prompt_of_a_later_turn_is_a_row_of_its_own() -> None:
    many = ("policy.trained_samples=64", "policy.sequences_per_update=512")
    job = job_of(RECIPE, *ROOM, *CHAIN, *many)
    unshared = tuple(replace(asked, shared=False) for asked in job.asked)
    later = replace(job, known_turns=Turns(unshared))
    found = slow_rows(later)
    rows = sum(n for n, _ in found)
    assert trained_rows(later) == pytest.approx(rows / 64)
    assert trained_length(later) == pytest.approx(sum(n * length for n, length in found) / rows)
    assert step_work(later)[0] == pytest.approx(8 * rows / 8)
    # The first turn's prompt is shared by its 16 answers: that saves less than it, per answer.
    saved = trained_rows(later) - trained_rows(job)
    assert 0 < saved < 200 / 4
    # Without turns it is what it was: the answer, and a part of the prompt.
    alone = job_of(RECIPE, *ROOM, *many)
    assert 512 < trained_rows(alone) < 712 and trained_length(alone) == pytest.approx(712)


@pytest.mark.parametrize("workflow", [DEBATE, CHAIN])
def test_a_plan_in_turns_has_more_seconds_and_the_same_memory(workflow: tuple[str, ...]) -> None:
    alone, turns = (plan_of(RECIPE, *ROOM, *more) for more in ((), workflow))
    for part in ("rollout", "update"):
        assert turns.seconds[part] > 1.3 * alone.seconds[part]
    for part in ("push", "free pass", "offload"):
        assert turns.seconds[part] == alone.seconds[part]
    assert turns.phases == alone.phases and turns.kv_tokens == alone.kv_tokens
