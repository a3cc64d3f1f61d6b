"""Which questions a step asks."""

from __future__ import annotations

import pytest

from ttrl.data.sources import QuestionList
from ttrl.rollout.workflows.checks import refuse_repeated
from ttrl.types import Question, UserError


def order(count: int, per_step: int, seed: int = 0) -> QuestionList:
    return QuestionList([Question(str(i), "", ()) for i in range(count)], per_step, seed)


def ids(order: QuestionList, steps: range) -> list[str]:
    return [q.id for step in steps for q in order.questions(step)]


@pytest.mark.parametrize(
    ("count", "per_step", "steps"), [(12, 4, 3), (14, 4, 3), (15, 4, 3), (4, 4, 1), (5, 1, 5)]
)
def test_an_epoch_asks_no_question_twice_and_drops_an_incomplete_step(
    count: int, per_step: int, steps: int
) -> None:
    questions = order(count, per_step)
    assert questions.window == steps
    for epoch in range(5):
        asked = ids(questions, range(epoch * steps + 1, (epoch + 1) * steps + 1))
        assert len(asked) == len(set(asked)) == steps * per_step
        assert set(asked) <= {str(i) for i in range(count)}


def test_all_questions_have_their_turn_although_some_are_dropped_in_each_epoch() -> None:
    assert len(set(ids(order(14, 4), range(1, 31)))) == 14


@pytest.mark.parametrize(("count", "per_step", "left_out"), [(12, 8, 4), (12, 4, 0), (14, 4, 2)])
def test_questions_that_a_pass_leaves_out_are_counted(
    count: int, per_step: int, left_out: int
) -> None:
    assert order(count, per_step).left_out == left_out


def test_epochs_are_shuffled_differently() -> None:
    questions = order(30, 10)
    epochs = [tuple(ids(questions, range(3 * e + 1, 3 * e + 4))) for e in range(4)]
    assert len({*epochs, tuple(str(i) for i in range(30))}) == 5


def test_a_step_is_a_pure_function_of_seed_and_step() -> None:
    forward, backward = order(20, 5), order(20, 5)
    steps = range(1, 13)
    asked = {step: ids(forward, range(step, step + 1)) for step in steps}
    assert asked == {step: ids(backward, range(step, step + 1)) for step in reversed(steps)}


def test_seeds_give_different_orders() -> None:
    assert len({tuple(ids(order(20, 5, seed), range(1, 5))) for seed in range(10)}) == 10


def test_too_few_questions_for_one_step_are_refused() -> None:
    with pytest.raises(UserError, match=r"rollout\.questions_per_step = 4, but only 3 training"):
        order(3, 4)


# ---------------------------------------------------------------------------------------------
# Further questions


def test_further_questions_are_the_others_in_an_order_of_the_step_s_own() -> None:
    questions = order(20, 5)
    for step in range(1, 9):
        others = [q.id for q in questions.further(step, 0, 99)]
        assert sorted([*others, *ids(questions, range(step, step + 1))], key=int) == [
            str(i) for i in range(20)
        ]
        parts = [questions.further(step, first, 4) for first in (0, 4, 8, 12)]
        assert [q.id for part in parts for q in part] == others
        assert questions.further(step, 0, 0) == questions.further(step, 15, 3) == []
        assert len(questions.further(step, 13, 3)) == 2


def test_further_questions_depend_on_seed_and_step_alone() -> None:
    orders = {
        tuple(q.id for q in order(20, 5, seed).further(step, 0, 3))
        for seed in (0, 1)
        for step in (1, 5)
    }
    assert len(orders) == 4
    assert order(20, 5).further(7, 2, 3) == order(20, 5).further(7, 0, 5)[2:]


# ---------------------------------------------------------------------------------------------
# A step's questions


def test_a_step_asks_no_id_twice() -> None:
    asked = [Question(id, "?", (1,)) for id in ("a", "b", "a")]
    refuse_repeated(asked[:2], step=3)
    with pytest.raises(UserError, match="step 3 asks question 'a' twice"):
        refuse_repeated(asked, step=3)


def test_examples_are_those_that_are_asked_first() -> None:
    questions = order(14, 4)
    assert [q.id for q in questions.examples(6)] == ids(questions, range(1, 3))[:6]
    assert len(questions.examples(99)) == 12  # one pass, without what it leaves out
