"""The end of a completion, at a stop token or for want of room, alike for every engine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ttrl.models.pretrained import Room
from ttrl.rollout.sampling import SamplingParams
from ttrl.types import Question, UserError


def stop_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Return the model's end-of-sequence ids and the tokenizer's.

    Raises:
        UserError: if the model's are no ids.
    """
    generation = getattr(model, "generation_config", None)
    named = getattr(generation, "eos_token_id", None)
    ids = named if isinstance(named, list) else [named]
    if not all(i is None or type(i) is int for i in ids):  # a bool is an int too
        raise UserError(
            f"the model's eos_token_id is {named!r}, expected a token id or a list of them: put it "
            "right in its generation_config.json or config.json"
        )
    return frozenset(i for i in [*ids, tokenizer.eos_token_id] if i is not None)


def refuse_absent_ids(
    questions: Sequence[Question], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Raise a UserError if a prompt or a stop token is beyond the model's embedding.

    Such a token is an added one, or one of another model's tokenizer. Padding is never a token of
    the tokenizer here: rows are padded with id 0, and masked.
    """
    embedding: Any = model.get_input_embeddings()
    rows: int = embedding.weight.shape[0]
    where = "use the tokenizer that belongs to the model, or resize the model's embedding"
    for question in questions:
        highest = max(question.prompt_ids)
        if highest >= rows:
            raise UserError(
                f"question {question.id!r}: its prompt holds token {highest}, "
                f"{tokenizer.convert_ids_to_tokens(highest)!r}, but the model's embedding has "
                f"only {rows} (vocab_size), from 0; {where}"
            )
    for stop in sorted(stop_ids(model, tokenizer)):
        if not 0 <= stop < rows:
            raise UserError(
                f"a completion should end at token {stop}, but the model's embedding has only "
                f"{rows} (vocab_size), from 0; {where}, or correct eos_token_id in its "
                "generation_config.json"
            )


def has_ended(
    tokens: Sequence[int],
    stops: frozenset[int],
    strings: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
) -> bool:
    """Say whether the last token is a stop token, or completes a stop string in the text."""
    if tokens[-1] in stops or not strings:
        return tokens[-1] in stops
    return completes(tokens[-tail_length(strings) :], strings, tokenizer)


def tail_length(strings: Sequence[str]) -> int:
    """Return how many of the last tokens can hold the end of a stop string that is new.

    A character takes up to four tokens, and one may come before it.
    """
    return 4 * (max(map(len, strings)) + 1)


def completes(
    tail: Sequence[int], strings: Sequence[str], tokenizer: PreTrainedTokenizerBase
) -> bool:
    """Say whether there is a stop string in the text of these last tokens."""
    text = tokenizer.decode(list(tail), skip_special_tokens=True)
    return any(string in text for string in strings)


def refuse_overflow(
    questions: Sequence[Question], params: SamplingParams, room: Room | None
) -> None:
    """Raise a UserError if a prompt leaves no room for ``max_new_tokens``."""
    if room is None or not questions:
        return
    longest = max(questions, key=lambda q: len(q.prompt_ids))
    needed = len(longest.prompt_ids) + params.max_new_tokens
    if needed > room.tokens:
        raise UserError(
            f"question {longest.id!r} has {len(longest.prompt_ids)} tokens and "
            f"max_new_tokens = {params.max_new_tokens}: {needed} in all, but the model's "
            f"context is {room.tokens}{room.why}; lower rollout.max_new_tokens or "
            "data.max_prompt_tokens"
        )
