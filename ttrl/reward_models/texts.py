"""The texts that a reward model reads: a question, and the steps of a solution.

A solution is hostile text. What spells a control token of the tokenizer in it, or the mark that a
reading puts behind each step, is taken apart, so that marks and turns are those that we wrote.
"""

from __future__ import annotations

from collections.abc import Iterable

from transformers import PreTrainedTokenizerBase

from ttrl.data.free_prompts import text_of
from ttrl.types import Question


def steps_of(solution: str, step: str) -> list[str]:
    r"""Split a solution into its steps; of an empty one, a single empty step.

    Blank steps are none, so a solution may end with or without ``step``.

    Example: ``steps_of("7+5=12\n\n\\boxed{12}\n", "\n") == ["7+5=12", "\\boxed{12}"]``.
    """
    steps = [part.strip() for part in solution.split(step)]
    return [part for part in steps if part] or [""]


def asked_text(question: Question) -> str:
    """Return the text of a question, as reward models are to read it.

    Raises:
        UserError: if it has none of its own.
    """
    return text_of(question, "be put to a reward model", "leave it out")


def control_texts(tokenizer: PreTrainedTokenizerBase, *marks: str) -> list[str]:
    """List what no solution may spell: the tokenizer's added tokens, and a reading's own marks."""
    added = {token.content for token in tokenizer.added_tokens_decoder.values()}
    return sorted({t for t in {*added, *marks} if t.strip()}, key=len, reverse=True)


def harmless(text: str, controls: Iterable[str]) -> str:
    """Return a text with a blank behind the first character of each control text in it.

    Example: ``harmless("so <extra_0>", ["<extra_0>"]) == "so < extra_0>"``.
    """
    text = text.encode("utf-8", "replace").decode().replace("\0", "")
    for control in controls:
        text = text.replace(control, f"{control[0]} {control[1:]}")
    return text
