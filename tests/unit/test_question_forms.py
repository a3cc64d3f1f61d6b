"""Questions in the forms that people have them in: messages, fields inside fields, ids."""

from __future__ import annotations

import json
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from tiny_tokenizer import tiny_tokenizer

from ttrl.data.questions import QuestionSet, load_questions
from ttrl.settings import DataSettings

TOKENIZER = tiny_tokenizer()
GOOD = {"prompt": "1 + 1", "answer": "2", "id": "good"}


def conversation(*turns: tuple[str, object]) -> list[dict[str, object]]:
    return [{"role": role, "content": content} for role, content in turns]


def test_a_list_of_strings(load: Callable[..., QuestionSet]) -> None:
    loaded = load("1 + 1", "2 + 2")
    assert [q.id for q in loaded.questions] == ["index-0", "index-1"]
    assert "user\n1 + 1<|im_end|>" in loaded.questions[0].prompt


def test_the_conversations_of_trl(load: Callable[..., QuestionSet]) -> None:
    messages = conversation(("system", "Be brief."), ("user", "1 + 1"))
    (question,) = load({"prompt": messages, "answer": "2"}, suffix=" Think.").questions
    assert question.prompt == (
        "<s><|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n1 + 1 Think.<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_a_system_message_of_a_rows_own_goes_before_that_of_the_settings(
    load: Callable[..., QuestionSet],
) -> None:
    own = {"prompt": conversation(("system", "Own."), ("user", "1")), "id": "own"}
    none = {"prompt": conversation(("user", "1")), "id": "none"}
    first, second = load(own, none, system_prompt="Ours.").questions
    assert "Own." in first.prompt and "Ours." not in first.prompt
    assert "system\nOurs.<" in second.prompt


def test_the_parquet_of_verl(tmp_path: Path) -> None:
    rows = [
        {
            "data_source": "gsm8k",
            "prompt": conversation(("user", f"{i} + 1")),
            "reward_model": {"style": "rule", "ground_truth": str(i + 1)},
            "extra_info": {"index": i, "split": "train"},
        }
        for i in range(2)
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "q.parquet")
    data = DataSettings(
        train=str(tmp_path / "q.parquet"),
        answer_field="reward_model.ground_truth",
        id_field="extra_info.index",
    )
    loaded = load_questions(data.train, data, TOKENIZER)
    assert loaded.key.answers == {"0": "1", "1": "2"}
    assert "user\n1 + 1<" in loaded.questions[1].prompt


def test_the_messages_of_openai_without_the_answer_at_their_end(
    load: Callable[..., QuestionSet],
) -> None:
    parts = [{"type": "text", "text": "1 "}, {"type": "text", "text": "+ 1"}]
    messages = conversation(
        ("user", "Hi"), ("assistant", "Hello"), ("user", parts), ("assistant", r"It is \boxed{2}.")
    )
    names = {"prompt_field": "messages", "answer_field": "messages.-1.content"}
    loaded = load({"messages": messages, "id": "a"}, **names)
    assert loaded.questions[0].prompt.endswith(
        "assistant\nHello<|im_end|>\n<|im_start|>user\n1 + 1<|im_end|>\n<|im_start|>assistant\n"
    )
    assert loaded.key.answers == {"a": "2"}
    assert load({"messages": messages}, **{**names, "answer_field": "messages.9"}).key.answers == {}


def test_doubles_and_decimals_of_parquet_keep_their_value(tmp_path: Path) -> None:
    def answers(column: pyarrow.Array) -> list[str]:
        table = pyarrow.table({"prompt": [str(i) for i in range(len(column))], "answer": column})
        pyarrow.parquet.write_table(table, tmp_path / "q.parquet")
        data = DataSettings(train=str(tmp_path / "q.parquet"))
        return list(load_questions(data.train, data, TOKENIZER).key.answers.values())

    assert answers(pyarrow.array([1e-5, 1e16, 0.1])) == ["0.00001", "10000000000000000.0", "0.1"]
    tiny = [Decimal("0.00000001"), Decimal("46.50000000")]
    assert answers(pyarrow.array(tiny)) == ["0.00000001", "46.50000000"]


def test_a_field_whose_own_name_has_a_dot_goes_first(load: Callable[..., QuestionSet]) -> None:
    row = {**GOOD, "a.b": "own", "a": {"b": "inner"}}
    assert load(row, answer_field="a.b").key.answers == {"good": "own"}


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([], "field 'prompt' holds no message of the user"),
        (conversation(("assistant", "x")), "field 'prompt' holds no message of the user"),
        (conversation(("user", " ")), "field 'prompt': the user's last message is empty"),
        (conversation(("user", "a"), ("system", "b")), "field 'prompt' has a system message that"),
        (conversation(("tool", "a")), "field 'prompt', message 0: role 'tool' is none of system"),
        (conversation(("user", None)), "field 'prompt', message 0: content must be text, got None"),
        (["a"], "field 'prompt', message 0: expected an object with role and content, got 'a'"),
        ([{"from": "human", "value": "a"}], "field 'prompt', message 0: expected an object with"),
        (conversation(("user", "a\0")), "field 'prompt' holds a NUL character"),
        (conversation(("user", "<|im_end|>")), "field 'prompt' holds the model's control token"),
        (
            conversation(("system", "<|im_start|>"), ("user", "a")),
            "field 'prompt' holds the model's control token '<|im_start|>'",
        ),
    ],
)
def test_messages_that_cannot_be_used(
    load: Callable[..., QuestionSet], messages: list[Any], reason: str
) -> None:
    (rejection,) = load(GOOD, {"prompt": messages}).rejected
    assert rejection.reason.startswith(reason)


def test_messages_need_the_chat_template(load: Callable[..., QuestionSet]) -> None:
    row = {"prompt": conversation(("user", "1"))}
    (rejection,) = load(GOOD, row, chat_template=False).rejected
    assert rejection.reason == "field 'prompt' holds messages, which need data.chat_template = true"


def test_what_a_template_says_of_one_rows_messages_is_that_rows_rejection(tmp_path: Path) -> None:
    no_system = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    tokenizer = tiny_tokenizer(no_system + "{{ messages[0].content }}")
    path = tmp_path / "q.json"
    path.write_text(json.dumps([GOOD, {"prompt": conversation(("system", "a"), ("user", "b"))}]))
    data = DataSettings(train=str(path), max_rejected_share=0.5)
    loaded = load_questions(data.train, data, tokenizer)
    assert [question.id for question in loaded.questions] == ["good"]
    assert "cannot be applied: no system" in loaded.rejected[0].reason
