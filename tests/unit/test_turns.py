"""Answers in turns: what is compared, trained, measured and written down."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from statistics import stdev

import pytest
from conversations import in_turns, question, said, settings
from groups import boxed, estimate, group

from ttrl.answers import Grader, extract_answer
from ttrl.credit.group_baseline import GroupBaseline
from ttrl.credit.outcomes import outcomes as credited
from ttrl.credit.prime import leave_one_out
from ttrl.evaluation.metrics import labelled_metrics
from ttrl.evaluation.outcomes import outcome_metrics, outcomes, turn_metrics
from ttrl.evaluation.scoring import score_groups
from ttrl.report.page.history import answers_of
from ttrl.report.rollouts import RecordedGroup, read_groups, recorded_line
from ttrl.report.tracking import sampled_answers
from ttrl.rewards.scorer import GroupScorer
from ttrl.rollout.resampling import Rollout, has_signal
from ttrl.settings import Settings
from ttrl.settings.prime import PrimeSettings
from ttrl.types import (
    AnswerKey,
    Completion,
    CompletionGroup,
    Estimate,
    Question,
    Turn,
    UserError,
    VotedGroup,
)

GRADER = Grader()

# Two debates of two agents and two rounds: 7 is the label.
#   first:  7 8 | 7 7      second:  8 9 | 9 7
SAID = ("7", "8", "7", "7", "8", "9", "9", "7")
PLACES = [(j, t, a) for j in (0, 1) for t in (0, 1) for a in (0, 1)]
DEBATED = in_turns(*((*place, boxed(x)) for place, x in zip(PLACES, SAID, strict=True)))
REWARDS = (1, 0, 1, 1, 0, 0, 0, 1)


def with_prompts(of: CompletionGroup) -> CompletionGroup:
    """The same; later turns have read prompts of their own."""

    def with_prompt(c: Completion, i: int) -> Completion:
        turn = c.turn
        assert turn is not None
        asked = Question(f"q1/{i}", f"prompt {i}", (90 + i,)) if turn.index else None
        return replace(c, turn=replace(turn, asked=asked, cut=turn.index * i))

    found = tuple(with_prompt(c, i) for i, c in enumerate(of.completions))
    return replace(of, completions=found)


def credit(advantages: str = "mean", **changes: object) -> Settings:
    return settings(
        agents=2,
        rounds=2,
        votes=8,
        reward={"advantages": advantages, **changes},
        policy={"trained_samples": 8, "sequences_per_update": 8},
    )


# ---------------------------------------------------------------------------------------------
# What is compared


def test_later_prompts_are_never_compared_with_earlier_ones() -> None:
    found = estimate(DEBATED)
    assert found.rewards_G == REWARDS
    assert DEBATED.parts == [[0, 1, 4, 5], [2, 3, 6, 7]]
    samples = GroupBaseline(credit()).assign([DEBATED], [found], 1).samples
    # Of the first round 1 of 4 is right, of the second 3 of 4.
    assert [s.advantages[0] for s in samples] == [
        0.75,
        -0.25,
        0.25,
        0.25,
        -0.25,
        -0.25,
        -0.75,
        0.25,
    ]
    deviation = stdev([1, 0, 0, 0])
    samples = GroupBaseline(credit("mean_std")).assign([DEBATED], [found], 1).samples
    assert samples[0].advantages[0] == pytest.approx(0.75 / deviation, abs=1e-5)
    assert samples[6].advantages[0] == pytest.approx(-0.75 / deviation, abs=1e-5)
    # So a group of one turn, as if the other were not there, has the same.
    alone = in_turns(*((j, t, a, boxed("7")) for j, t, a in PLACES if t == 0))
    first = Estimate(found.vote, (1, 0, 0, 0), "7")
    assert [s.advantages for s in GroupBaseline(credit()).assign([alone], [first], 1).samples] == [
        (0.75,) * 2,
        *[(-0.25,) * 2] * 3,
    ]


def test_roles_of_one_turn_are_not_compared_either() -> None:
    roles = ("a", "b", "a", "b")
    completions = tuple(said("", Turn(0, i % 2, i // 2, role)) for i, role in enumerate(roles))
    of = CompletionGroup(question(), completions, 0)
    paid = Estimate(estimate(of).vote, (1, 0, 0, 0), None)
    samples = GroupBaseline(credit()).assign([of], [paid], 1).samples
    assert [s.advantages[0] for s in samples] == [0.5, 0, -0.5, 0]


def test_shaped_rewards_are_what_advantages_are_of() -> None:
    shaped = replace(estimate(DEBATED), shaped_G=(1, 0, 1.25, 1.25, 0, 0, 0, 1.5))
    samples = GroupBaseline(credit()).assign([DEBATED], [shaped], 1).samples
    assert [s.advantages[0] for s in samples][2:4] == [0.25, 0.25]
    assert [s.advantages[0] for s in samples][6:] == [-1.0, 0.5]
    assert credited([DEBATED], [shaped], credit(), 1).rewards == list(shaped.shaped_G or ())


def test_whitening_is_by_turn_and_role() -> None:
    """REINFORCE++: rewards less the step's mean, of the same turn, by its deviation."""
    other = in_turns(*((*place, boxed("7")) for place in PLACES))
    groups = [DEBATED, replace(other, question=question("q2"))]
    samples = GroupBaseline(credit("reinforce_pp")).assign(groups, list(map(estimate, groups)), 1)
    paid = [1, 0, 0, 0, 1, 1, 1, 1], [1, 1, 0, 1, 1, 1, 1, 1]
    for turn, rewards in enumerate(paid):
        flat = [r for r in rewards for _ in range(2)]  # two tokens each
        mean, deviation = sum(flat) / 16, stdev(flat)
        places = [g + i for g in (0, 8) for i in DEBATED.parts[turn]]
        found = [samples.samples[i].advantages[0] for i in places]
        assert found == pytest.approx([(r - mean) / deviation for r in rewards], abs=1e-6)


def test_implicit_rewards_are_compared_within_a_turn() -> None:
    found = credited(
        [DEBATED, group("7", "8")], [estimate(DEBATED), estimate(group("7", "8"))], credit(), 1
    )
    assert list(found.compared()) == [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9]]
    rewards = [(0.0,)] * 4
    first, second = (
        leave_one_out(rewards, [found.rewards[i] for i in places], PrimeSettings())
        for places in list(found.compared())[:2]
    )
    scale = PrimeSettings().outcome_coef * 4 / 3
    assert [x[0] for x in first] == pytest.approx([scale * x for x in (0.75, -0.25, -0.25, -0.25)])
    assert [x[0] for x in second] == pytest.approx([scale * x for x in (0.25, 0.25, -0.75, 0.25)])


def test_a_sample_has_the_prompt_of_its_turn() -> None:
    of = with_prompts(DEBATED)
    samples = GroupBaseline(credit()).assign([of], [estimate(of)], 1).samples
    prompts = [s.token_ids[: s.prompt_length] for s in samples]
    own = question().prompt_ids
    assert prompts == [own, own, (92,), (93,), own, own, (96,), (97,)]
    assert all(s.token_ids[s.prompt_length :] == (5, 6) for s in samples)


def test_a_signal_is_one_within_a_turn() -> None:
    rounds = in_turns(*((*place, boxed("7" if place[1] else "8")) for place in PLACES))
    even = replace(estimate(rounds), rewards_G=(0, 0, 1, 1, 0, 0, 1, 1))
    assert has_signal(even) and not has_signal(even, rounds.parts)
    assert has_signal(estimate(DEBATED), DEBATED.parts)
    assert has_signal(replace(even, shaped_G=(0, 0, 1.5, 1, 0, 0, 1, 1)), rounds.parts)
    rollout = Rollout()
    rollout.add([rounds, DEBATED], [even, estimate(DEBATED)])
    assert rollout.open == [0]


# ---------------------------------------------------------------------------------------------
# What is paid


def test_all_turns_of_all_agents_vote_and_are_paid_and_shaped() -> None:
    run = credit()
    run = run.model_copy(update={"agents": run.agents.model_copy(update={"shaping": "margin"})})
    scorer = GroupScorer(run, GRADER)
    found = scorer.estimate(DEBATED, None, 1)
    assert found.label == "7" and found.vote.counts[0] == 4
    assert found.rewards_G == REWARDS
    # Q is 1/2 in the first debate, 0 in the second.
    assert found.shaped_G == (1, 0, 1.25, 1.25, 0, 0, 0, 1.5)


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("restrain", "compares each answer with all others, also of other turns"),
        ("ddrl", "compares each answer with all others"),
        ("ttrl_guard", "compares each answer with all others"),
        ("scope", "gives answers labels of their own, by subgroups of all turns"),
    ],
)
def test_estimators_that_compare_turns_are_refused(name: str, problem: str) -> None:
    with pytest.raises(UserError, match=f"reward.estimator = '{name}', which {problem}"):
        GroupScorer(credit(estimator=name), GRADER)
    for fine in ("majority", "soft", "confidence", "scrl", "evol", "random"):
        GroupScorer(credit(estimator=fine), GRADER)


def test_a_users_estimator_with_advantages_is_refused_when_it_gives_them() -> None:
    class Own:
        def estimate(self, voted: VotedGroup) -> Estimate:
            n = len(voted.agrees_G)
            return Estimate(voted.vote, (0.0,) * n, voted.label, advantages_G=(1.0,) * n)

    scorer = GroupScorer(credit(), GRADER, Own())
    with pytest.raises(UserError, match=r"Own', which compares"):
        scorer.estimate(DEBATED, None, 1)
    assert scorer.estimate(group("7", "8"), None, 1).shaped_G is None


# ---------------------------------------------------------------------------------------------
# What is measured


def test_what_comes_out_is_the_majority_of_the_last_turn() -> None:
    turns = [c.turn for c in DEBATED.completions]
    # Of the second debate 9 and 7 are tied, and the vote's order of ties decides.
    assert outcomes(SAID, turns, GRADER) == ["7", "7"]
    assert outcomes([*SAID[:6], "9", None], turns, GRADER) == ["7", "9"]
    assert outcomes([*SAID[:6], None, None], turns, GRADER) == ["7", None]
    assert outcomes(["1", "2"], [None, None], GRADER) == []


def test_figures_by_turn() -> None:
    of = with_prompts(DEBATED)
    assert turn_metrics(of, estimate(of)) == {
        "agents/reward/turn=0": 0.25,
        "agents/reward/turn=1": 0.75,
        "agents/abstention_share/turn=0": 0.0,
        "agents/abstention_share/turn=1": 0.0,
        "agents/prompt_tokens": 1.0,
        "agents/cut_tokens": (2 + 3 + 6 + 7) / 4,
        "agents/cut_share": 1.0,
    }
    assert turn_metrics(group("7"), estimate(group("7"))) == {}
    assert outcome_metrics(of, estimate(of), "7", GRADER) == {"label/outcome_accuracy": 1.0}
    assert outcome_metrics(group("7"), estimate(group("7")), "7", GRADER) == {}
    key = AnswerKey({"q1": "9"}, {"q1": "2"})
    found = labelled_metrics([of], [estimate(of)], key, GRADER, [range(8)])
    assert found["label/outcome_accuracy"] == found["label/outcome_accuracy/level=2"] == 0.0


def test_conversations_are_scored_beside_single_answers() -> None:
    single = group("7", "8", "9")
    both = replace(single, completions=single.completions + DEBATED.completions)
    recorded = RecordedGroup.of(both)
    assert len(recorded.answers) == 11 and len(recorded.alone) == 3
    key = AnswerKey({"q1": "7"})
    (found,) = score_groups([recorded], key, (1, 3), extract_answer, GRADER)
    assert found.scores["pass@1"] == pytest.approx(1 / 3)
    assert found.scores["outcome"] == 1.0
    # Of answers in turns alone, those of the first are by themselves.
    (found,) = score_groups(
        [RecordedGroup.of(with_prompts(DEBATED))], key, (1,), extract_answer, GRADER
    )
    assert found.scores["pass@1"] == 0.25
    (found,) = score_groups([RecordedGroup.of(single)], key, (1,), extract_answer, GRADER)
    assert "outcome" not in found.scores


def test_samples_of_conversations_come_back_from_their_file(tmp_path: Path) -> None:
    recorded = RecordedGroup.of(with_prompts(DEBATED))
    file = tmp_path / "answers.jsonl"
    file.write_text(json.dumps(recorded_line(recorded)) + "\n")
    (again,) = read_groups(file)
    turns = [a.turn for a in again.answers]
    assert [t.role for t in turns if t] == [t.turn.role for t in recorded.answers if t.turn]
    assert turns[3] is not None and turns[3].asked is not None
    assert (turns[3].asked.prompt, turns[3].cut, turns[3].trajectory) == ("prompt 3", 3, 0)
    assert again.alone == tuple(a for a in again.answers if a.turn and a.turn.index == 0)


def test_trackers_and_pages_show_what_was_read_and_said() -> None:
    of = with_prompts(DEBATED)
    shown = sampled_answers([of], [estimate(of)], 4)
    assert [answer.prompt for answer in shown] == [question().prompt] * 2 + ["prompt 2", "prompt 3"]
    answers = answers_of([RecordedGroup.of(of)])["answers"]["q1"]
    assert answers[3][0].startswith("[trajectory 1, turn 2: role 1 2]\nSo it is")
