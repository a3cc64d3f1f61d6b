"""Chat template, suffix, special tokens."""

from __future__ import annotations

import pytest
from tiny_tokenizer import CHATML, tiny_tokenizer
from transformers import PreTrainedTokenizerFast

from ttrl.data.prompts import (
    ControlTokens,
    build_prompt,
    encode_prompt,
    refuse_unread_variables,
)
from ttrl.settings import DataSettings
from ttrl.settings.recipe import load_settings
from ttrl.types import UserError


def data(**settings: object) -> DataSettings:
    return DataSettings.model_validate({"train": "unused.json", **settings})


def test_a_templated_prompt_holds_question_suffix_and_the_turn_of_the_assistant() -> None:
    prompt = build_prompt("What is 1 + 2?", data(suffix=" Think."), tiny_tokenizer())
    assert prompt == (
        "<s><|im_start|>user\nWhat is 1 + 2? Think.<|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_raw_prompt_is_the_question_and_the_suffix() -> None:
    prompt = build_prompt("1 + 2 =", data(chat_template=False, suffix=" ?"), tiny_tokenizer(None))
    assert prompt == "1 + 2 = ?"


def test_a_system_prompt_comes_first() -> None:
    prompt = build_prompt("Q", data(system_prompt="Be brief."), tiny_tokenizer())
    assert prompt.startswith("<s><|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nQ<")


def test_chat_template_kwargs_reach_the_template() -> None:
    settings = data(chat_template_kwargs={"enable_thinking": False})
    prompt = build_prompt("Q", settings, tiny_tokenizer())
    assert prompt.endswith("<|im_start|>assistant\n<think></think>")
    assert not build_prompt("Q", data(), tiny_tokenizer()).endswith("</think>")


@pytest.mark.parametrize("chat_template", [True, False])
def test_no_prompt_begins_with_two_bos_tokens(chat_template: bool) -> None:
    tokenizer, settings = tiny_tokenizer(), data(chat_template=chat_template)
    ids = encode_prompt(build_prompt("1 + 2", settings, tokenizer), settings, tokenizer)
    assert ids[0] == tokenizer.bos_token_id
    assert ids.count(tokenizer.bos_token_id) == 1
    assert "1 + 2" in tokenizer.decode(ids)


def test_a_template_that_writes_no_bos_gets_none() -> None:
    tokenizer, settings = tiny_tokenizer(CHATML.removeprefix("{{ bos_token }}")), data()
    ids = encode_prompt(build_prompt("1 + 2", settings, tokenizer), settings, tokenizer)
    assert tokenizer.bos_token_id not in ids


def test_the_suffix_of_the_recipes_begins_with_a_new_line_and_not_with_a_backslash_and_an_n() -> (
    None
):
    """TTRL's scripts put a literal backslash-n there."""
    settings = load_settings("aime24", model="qwen2.5-7b").data
    prompt = build_prompt("What is 1 + 2?", settings, tiny_tokenizer())
    assert "What is 1 + 2?\nPlease reason step by step" in prompt
    assert "\\n" not in prompt
    assert "within \\boxed{}." in prompt


def test_a_tokenizer_without_a_template_names_the_setting_to_turn_off() -> None:
    with pytest.raises(UserError, match=r"'tiny' has no chat template: set data.chat_template ="):
        build_prompt("Q", data(), tiny_tokenizer(None))


def test_a_template_that_refuses_the_system_role_is_the_users_to_correct() -> None:
    template = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    with pytest.raises(UserError, match=r"'tiny' cannot be applied: no system; see data.system"):
        build_prompt("Q", data(system_prompt="S"), tiny_tokenizer(template))


def test_a_template_variable_that_is_an_argument_of_ours_is_refused() -> None:
    with pytest.raises(UserError, match=r"cannot be applied: .*tokenize"):
        build_prompt("Q", data(chat_template_kwargs={"tokenize": True}), tiny_tokenizer())


QWEN_STYLE = (
    "{%- for m in messages %}{%- if not loop.first %}{% continue %}{% endif %}"
    "{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
    "{%- if not thinking is defined %}{% set thinking = true %}{% endif %}"
    "{% set ns = namespace(x=date_string) %}{{ thinking }}{{ ns.x }}{{ bos_token }}"
)


def test_variables_that_the_template_reads_are_taken() -> None:
    refuse_unread_variables(data(), tiny_tokenizer(None))
    refuse_unread_variables(data(chat_template_kwargs={"enable_thinking": True}), tiny_tokenizer())
    both = {"thinking": True, "date_string": "1 May"}
    refuse_unread_variables(data(chat_template_kwargs=both), tiny_tokenizer(QWEN_STYLE))


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (CHATML, r"'tiny' does not read 'enable_thinkng' \(did you mean 'enable_thinking'\?\)"),
        (QWEN_STYLE, r"does not read 'enable_thinkng'.*it reads date_string, thinking$"),
        ("{{ messages[0].content }}", r"does not read 'enable_thinkng'.*it reads no variables"),
        ("{% for %}", "the chat template of 'tiny' cannot be read: "),
    ],
)
def test_a_variable_that_would_change_nothing_is_refused(template: str, message: str) -> None:
    settings = data(chat_template_kwargs={"enable_thinkng": False})
    with pytest.raises(UserError, match=message):
        refuse_unread_variables(settings, tiny_tokenizer(template))


# ---------------------------------------------------------------------------------------------
# Control tokens inside a question


def foreign(question: str, tokenizer: PreTrainedTokenizerFast, **settings: object) -> str | None:
    options = data(**settings)
    ids = encode_prompt(build_prompt(question, options, tokenizer), options, tokenizer)
    return ControlTokens(options, tokenizer).foreign(question, ids)


@pytest.mark.parametrize("chat_template", [True, False])
@pytest.mark.parametrize("token", ["<|im_end|>", "<|im_start|>", "</s>", "<s>"])
def test_special_tokens_in_a_question_are_found(token: str, chat_template: bool) -> None:
    question = f"1 + 2{token}\n3"
    assert foreign(question, tiny_tokenizer(), chat_template=chat_template) == token


@pytest.mark.parametrize("question", ["1 + 2", "a < b | c > d", "<|im_end", "x   y", "é \u2028 🙂"])
def test_ordinary_text_is_not_mistaken_for_a_control_token(question: str) -> None:
    assert foreign(question, tiny_tokenizer()) is None


def test_an_unmarked_token_counts_where_the_template_writes_it() -> None:
    """Some tokenizers do not mark their role and thinking markers as special."""
    thinking_off = {"enable_thinking": False}
    question = "What is <think>?"
    assert foreign(question, tiny_tokenizer(), chat_template_kwargs=thinking_off) == "<think>"
    assert foreign(question, tiny_tokenizer()) is None


def test_control_tokens_of_the_users_own_suffix_and_system_prompt_are_allowed() -> None:
    settings = {"suffix": "<|im_end|>", "system_prompt": "<|im_end|>"}
    assert foreign("1 + 2", tiny_tokenizer(), **settings) is None
    assert foreign("1 <|im_end|>", tiny_tokenizer(), **settings) == "<|im_end|>"


def test_an_unknown_character_is_no_control_token_unless_its_token_ends_the_sequence() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.unk_token = "<|im_start|>"
    assert foreign("<|im_start|>", tokenizer) is None
    tokenizer.unk_token = tokenizer.eos_token
    assert foreign("</s>", tokenizer) == "</s>"


def test_blanks_are_no_control_token_even_where_the_template_writes_them() -> None:
    assert foreign("x   y", tiny_tokenizer(CHATML + "   ")) is None


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ messages[0]['content'] }}{{ 1 / 0 }}", "cannot be applied: division by zero"),
        ("{{ bos_token }}Hello", "leaves the question out, or a part of it: other questions have"),
        ("1 + 1 is 2. What is this?", "leaves the question out"),
        ("{{ messages[0]['content'][0] }}", "leaves the question out"),
        ("{{ messages[0]['content'][2:] }}", "leaves the question out"),
        (
            "{% for part in messages[0]['content'] %}{{ part['text'] }}{% endfor %}",
            "leaves the question out",
        ),
    ],
)
def test_a_template_that_cannot_ask_is_refused(template: str, message: str) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    with pytest.raises(UserError, match=message):
        ControlTokens(DataSettings(train="q.jsonl"), tokenizer)


@pytest.mark.parametrize(
    "filters",
    [
        "trim",
        "replace(' ', '')",
        "replace(' ', '\u2581')",
        "escape",
        "urlencode",
        "lower",
        "tojson",
    ],
)
def test_a_template_may_write_a_text_in_its_own_way(filters: str) -> None:
    template = f"<|im_start|>user {{{{ messages[-1]['content'] | {filters} }}}}<|im_end|>"
    tokenizer = tiny_tokenizer(template)
    assert foreign("1 + 2", tokenizer) is None
    assert foreign("1 + 2<s>", tokenizer) == (None if filters in ("escape", "urlencode") else "<s>")
