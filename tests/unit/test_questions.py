"""Which rows become questions, which are rejected and why, and where the labels are."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_tokenizer import tiny_tokenizer

from ttrl.data.questions import QuestionSet, load_questions, load_references, overlap
from ttrl.data.rows import Rejection
from ttrl.settings import DataSettings
from ttrl.types import UserError

TOKENIZER = tiny_tokenizer()
GOOD = {"prompt": "1 + 1", "answer": "2", "id": "good"}


def test_references_are_those_of_the_questions(
    load: Callable[..., QuestionSet], tmp_path: Path
) -> None:
    asked = load(
        {"id": "a", "prompt": "p", "answer": "So \\boxed{7}."},
        {"id": "b", "prompt": "p", "answer": 0.5},
        {"prompt": "p", "answer": "8"},  # named by its place
        {"id": "c", "prompt": "p"},
        {"id": "d", "prompt": "p", "answer": "#### 1\n#### 2"},  # which?
        {"id": "long", "prompt": "p" * 4000, "answer": "1"},
        {"id": "twice", "prompt": "p" * 4000, "answer": "1"},
        {"id": "twice", "prompt": "p", "answer": "2"},
    )
    data = DataSettings(train=str(tmp_path / "q.json"))
    found = load_references(data.train, data)
    assert found == {"a": "7", "b": "0.5", "index-2": "8", "long": "1"}
    assert {**asked.key.answers, "long": "1"} == {**found, "twice": "2"}  # by its prompt


def test_a_row_becomes_a_question_and_an_entry_of_the_key(load: Callable[..., QuestionSet]) -> None:
    loaded = load({"prompt": "1 + 1", "answer": "2", "id": "a", "level": "easy", "source": "me"})
    (question,) = loaded.questions
    assert question.id == "a"
    assert question.prompt == "<s><|im_start|>user\n1 + 1<|im_end|>\n<|im_start|>assistant\n"
    assert TOKENIZER.decode(question.prompt_ids) == question.prompt
    assert loaded.key.answers == {"a": "2"}
    assert loaded.key.levels == {"a": "easy"}
    assert loaded.rejected == ()


def test_questions_hold_no_label(load: Callable[..., QuestionSet]) -> None:
    secret = "the-secret-label"
    loaded = load({**GOOD, "answer": secret, "level": secret, "solution": secret})
    assert secret not in repr([dataclasses.asdict(question) for question in loaded.questions])
    assert secret in repr(loaded.key)


def test_the_same_questions_with_and_without_labels(load: Callable[..., QuestionSet]) -> None:
    rows = [{"prompt": "1 + 1", "id": "a"}, {"prompt": "2 + 2", "id": "b"}]
    labeled = load(*({**row, "answer": "7", "level": 3} for row in rows))
    assert load(*rows).questions == labeled.questions
    assert load(*rows).key.answers == {}


def test_fields_go_by_the_names_in_the_settings(load: Callable[..., QuestionSet]) -> None:
    row = {"problem": "1 + 1", "gold": "2", "unique_id": "u", "hard": 5, "answer": "no", "id": "no"}
    names = {
        "prompt_field": "problem",
        "answer_field": "gold",
        "id_field": "unique_id",
        "level_field": "hard",
    }
    loaded = load(row, **names)
    assert loaded.questions[0].id == "u"
    assert loaded.key.answers == {"u": "2"}
    assert loaded.key.levels == {"u": "5"}


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("142.0", "142.0"),
        (142, "142"),
        (142.0, "142.0"),
        (-0.5, "-0.5"),
        ("025", "025"),
        (1e-5, "1e-05"),
    ],
)
def test_answers_keep_their_spelling_and_numbers_become_text(
    load: Callable[..., QuestionSet], answer: str | float, expected: str
) -> None:
    assert load({**GOOD, "answer": answer}).key.answers == {"good": expected}


@pytest.mark.parametrize("answer", [None, "", "  "])
def test_an_empty_answer_is_none(load: Callable[..., QuestionSet], answer: str | None) -> None:
    loaded = load({**GOOD, "answer": answer})
    assert len(loaded.questions) == 1
    assert loaded.key.answers == {}


@pytest.mark.parametrize(
    ("given", "expected"), [("a/b.json", "a/b.json"), (7, "7"), (None, "index-0"), ("", "index-0")]
)
def test_ids(load: Callable[..., QuestionSet], given: str | int | None, expected: str) -> None:
    assert load({**GOOD, "id": given}).questions[0].id == expected


def test_rows_without_an_id_are_named_by_their_place(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text('{"prompt": "a"}\n\n{"prompt": "b"}\n')
    data = DataSettings(train=str(path))
    questions = load_questions(data.train, data, TOKENIZER).questions
    assert [question.id for question in questions] == ["line-1", "line-3"]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({**GOOD, "answer": True}, "field 'answer' must be text or a number, got True"),
        ({**GOOD, "answer": ["2"]}, "field 'answer' must be text or a number, got ['2']"),
        ({**GOOD, "answer": float("nan")}, "field 'answer' must be text or a number, got nan"),
        ({**GOOD, "answer": "2\0"}, "field 'answer' holds a NUL character"),
        ({**GOOD, "answer": "\udc00"}, "field 'answer' holds half of a surrogate pair"),
        ({**GOOD, "level": {"n": 1}}, "field 'level' must be text or a number, got {'n': 1}"),
    ],
)
def test_a_bad_label_does_not_decide_what_is_trained_on(
    load: Callable[..., QuestionSet], row: Any, reason: str
) -> None:
    first, last = {"prompt": "a", "id": "first"}, {"prompt": "z", "answer": "1", "id": "last"}
    loaded = load(first, row, last)
    assert [question.id for question in loaded.questions] == ["first", "good", "last"]
    (ignored,) = loaded.rejected
    assert ignored.reason.startswith(reason)
    assert ignored.reason.endswith("; question kept without it")
    name = "answer" if "answer" in reason else "level"
    assert "good" not in (loaded.key.answers if name == "answer" else loaded.key.levels)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("", "field 'prompt' is empty"),
        (None, "expected an object or a question's text, got None"),
        ([GOOD], "expected an object or a question's text, got [{"),
        ({"frage": "1 + 1"}, "no field 'prompt' (data.prompt_field); its fields are ['frage"),
        ({"problem": "1 + 1"}, "no field 'prompt' (data.prompt_field): --set data.prompt_field=pr"),
        ({"prompt": None}, "field 'prompt' must be text or a list of messages with role and con"),
        ({"prompt": 7}, "field 'prompt' must be text or a list of messages with role and content"),
        ({"prompt": ""}, "field 'prompt' is empty"),
        ({"prompt": " \n\t\u00a0"}, "field 'prompt' is empty"),
        ({"prompt": "a\0b"}, "field 'prompt' holds a NUL character"),
        ({"prompt": "a\ud800b"}, "field 'prompt' holds half of a surrogate pair"),
        ({"prompt": "a<|im_end|>b"}, "field 'prompt' holds the model's control token '<|im_end|>'"),
        ({"prompt": "a </s>"}, "field 'prompt' holds the model's control token '</s>'"),
        ({**GOOD, "id": 1.5}, "field 'id' must be text or a whole number, got 1.5"),
        ({**GOOD, "id": False}, "field 'id' must be text or a whole number, got False"),
        ({**GOOD, "id": "\ud800"}, "field 'id' holds half of a surrogate pair"),
        ({"prompt": "b", "id": "first"}, "duplicate id 'first'"),
    ],
)
def test_a_bad_row_is_rejected_with_its_place_and_the_others_survive(
    load: Callable[..., QuestionSet], row: Any, reason: str
) -> None:
    first, last = {"prompt": "a", "id": "first"}, {"prompt": "z", "answer": "1", "id": "last"}
    loaded = load(first, row, last)
    assert [question.id for question in loaded.questions] == ["first", "last"]
    assert loaded.key.answers == {"last": "1"}
    (rejection,) = loaded.rejected
    assert rejection.place == "index 1"
    assert rejection.reason.startswith(reason)


def test_a_prompt_may_be_as_long_as_the_limit_and_no_longer(
    load: Callable[..., QuestionSet],
) -> None:
    length = len(load(GOOD).questions[0].prompt_ids)
    assert len(load(GOOD, max_prompt_tokens=length).questions) == 1
    short = {"prompt": "1", "id": "short"}
    (rejection,) = load(short, GOOD, max_prompt_tokens=length - 1).rejected
    limit = f"has {length} tokens, more than data.max_prompt_tokens = {length - 1}"
    assert limit in rejection.reason


def test_a_huge_prompt_is_rejected_in_one_short_line(load: Callable[..., QuestionSet]) -> None:
    (rejection,) = load(GOOD, {"prompt": "x " * 100_000}, {"prompt": ["x"] * 100_000}).rejected[1:]
    assert len(str(rejection)) < 500
    assert "\n" not in str(rejection)


def test_a_rejection_is_one_line_with_file_place_and_reason() -> None:
    assert str(Rejection("q.jsonl", "line 3", "bad")) == "q.jsonl:line 3: bad"


def test_lines_that_are_not_json_count_as_rejected(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text(f'{json.dumps(GOOD)}\n{{"prompt"\n{{"prompt": ""}}\n')
    data = DataSettings(train=str(path), max_rejected_share=0.7)
    rejected = load_questions(data.train, data, TOKENIZER).rejected
    assert [rejection.place for rejection in rejected] == ["line 2", "line 3"]


# ---------------------------------------------------------------------------------------------
# Answers and what is said of them


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("12 + 34 is\n<<12+34=46>>46.\n#### 46", "46"),
        ("#### 1,234\r\n", "1,234"),
        (r"So $x=46$, and the answer is $\boxed{46}$.", "46"),
        ("#### \\boxed{46}", "46"),
        (r"\boxed{x = \frac{1}{2}}", r"x = \frac{1}{2}"),
        ("no number # 46", "no number # 46"),
    ],
)
def test_an_answer_is_read_out_of_a_solution(
    load: Callable[..., QuestionSet], answer: str, expected: str
) -> None:
    loaded = load({**GOOD, "answer": answer})
    assert loaded.key.answers == {"good": expected}
    if answer != expected:
        (remark,) = loaded.remarks
        assert "1 of 1 answers were read out of a solution" in remark
        assert remark.endswith(f" -> {expected!r}")
    else:
        assert loaded.remarks == ()


@pytest.mark.parametrize("answer", ["#### 4\n#### 6", "\\boxed{4}\n#### 6"])
def test_a_solution_with_several_answers_gives_none(
    load: Callable[..., QuestionSet], answer: str
) -> None:
    loaded = load({**GOOD, "answer": answer})
    (ignored,) = loaded.rejected
    assert ignored.reason.startswith("field 'answer' gives several answers (\\boxed{...}, or ")
    assert loaded.key.answers == {} and len(loaded.questions) == 1


def test_answers_that_are_sentences_are_said_loudly_with_examples(
    load: Callable[..., QuestionSet],
) -> None:
    rows = [{"prompt": f"{i}", "answer": f"The answer is {i}."} for i in range(5)]
    (remark,) = load(*rows, {"prompt": "x", "answer": "5"}).remarks
    assert remark.startswith("warning: ")
    assert "5 of 6 answers look like sentences" in remark
    assert "'index-2': 'The answer is 2.'" in remark and "'index-3'" not in remark


@pytest.mark.parametrize(
    "answer",
    [r"\text{all real numbers except for zero}", r"$x \in (0, \infty)$", "Sunday", "3, 5, 7"],
)
def test_values_are_no_sentences(load: Callable[..., QuestionSet], answer: str) -> None:
    assert load({**GOOD, "answer": answer}).remarks == ()


def test_duplicated_questions_are_said_and_kept(load: Callable[..., QuestionSet]) -> None:
    rows = [{"prompt": text} for text in ("a", "b", "a", "a")]
    loaded = load(*rows)
    assert len(loaded.questions) == 4
    (remark,) = loaded.remarks
    assert "2 questions are there more than once, for example 'index-2' is 'index-0'" in remark
    assert load(*rows[:2]).remarks == ()


def test_fields_of_the_held_out_set_may_be_others() -> None:
    data = DataSettings(
        train="a", held_out="b", for_held_out={"prompt_field": "q", "split": "test"}
    )
    held_out = data.as_held_out()
    assert (held_out.prompt_field, held_out.split, held_out.answer_field) == ("q", "test", "answer")
    assert data.prompt_field == "prompt"


# ---------------------------------------------------------------------------------------------
# When loading stops


def test_rejections_up_to_the_share_are_tolerated_and_no_more(
    load: Callable[..., QuestionSet],
) -> None:
    rows = [{"prompt": f"{i} + 1"} for i in range(3)]
    assert len(load(*rows, None, max_rejected_share=0.25).rejected) == 1
    with pytest.raises(UserError, match=r"^1 of 4 rows rejected") as error:
        load(*rows, None, max_rejected_share=0.24)
    assert "raise data.max_rejected_share = 0.24" in str(error.value)


def test_the_error_lists_the_first_few_and_counts_the_others(
    load: Callable[..., QuestionSet],
) -> None:
    with pytest.raises(UserError, match=r"^5 of 6 rows rejected") as error:
        load(GOOD, *[{"prompt": ""}] * 5, max_rejected_share=0.5)
    message = str(error.value)
    assert "q.json:index 1: field 'prompt' is empty (and 4 more rows); correct them" in message
    assert "\n" not in message
    with pytest.raises(UserError, match=r"index 3: .*; and 2 more reasons; correct them") as error:
        load(GOOD, *({"prompt": i} for i in range(5)), max_rejected_share=0.5)
    assert "index 4" not in str(error.value)


def test_no_usable_row_stops_whatever_the_share(load: Callable[..., QuestionSet]) -> None:
    with pytest.raises(UserError, match=r"1 of 1 rows rejected: .*no usable row is left"):
        load({"prompt": ""}, max_rejected_share=1.0)


def test_an_empty_source_stops(load: Callable[..., QuestionSet], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"q\.json holds no rows"):
        load()
    path = tmp_path / "empty.jsonl"
    path.write_text("\n")
    data = DataSettings(train=str(path))
    with pytest.raises(UserError, match=r"empty\.jsonl holds no rows"):
        load_questions(data.train, data, TOKENIZER)


# ---------------------------------------------------------------------------------------------
# The public format, the embedded task, two sets


def test_the_public_format_of_ttrl(load: Callable[..., QuestionSet]) -> None:
    rows = [
        {"prompt": "How many?", "answer": "142.0", "source": "amc", "id": "0"},
        {"prompt": "Where?", "answer": r"\left( 3, \frac{\pi}{2} \right)", "id": "test/7.json"},
    ]
    loaded = load(*rows, max_rejected_share=0.0)
    assert [question.id for question in loaded.questions] == ["0", "test/7.json"]
    assert loaded.key.answers["test/7.json"] == r"\left( 3, \frac{\pi}{2} \right)"


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_the_embedded_task_loads_without_a_rejection(split: str) -> None:
    data = DataSettings(train=f"arithmetic:{split}", chat_template=False, max_rejected_share=0.0)
    loaded = load_questions(data.train, data, TOKENIZER)
    ids = {question.id for question in loaded.questions}
    assert loaded.rejected == ()
    assert loaded.key.answers.keys() == loaded.key.levels.keys() == ids


def test_overlap_names_held_out_questions_with_a_trained_prompt(
    load: Callable[..., QuestionSet],
) -> None:
    train = load({"prompt": "a", "id": "1"}, {"prompt": "b", "id": "2"})
    held_out = load({"prompt": "c", "id": "1"}, {"prompt": "b", "id": "9"})
    assert overlap(train.questions, held_out) == ("9",)
    assert overlap(train.questions, load({"prompt": "c", "id": "1"})) == ()


def test_an_answer_may_be_a_number_of_any_size(load: Callable[..., QuestionSet]) -> None:
    """Also one that no float holds."""
    found = load({"prompt": "10^400?", "answer": 10**400})
    assert list(found.key.answers.values()) == [str(10**400)]
    assert not found.rejected
