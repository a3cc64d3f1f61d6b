"""Supervised training of the embedded task's models: of a question's answer, token by token."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ttrl.data import arithmetic

Pair = tuple[list[int], list[int]]
"""Token ids of a prompt, and of the answer that is learned."""
Batch = tuple[torch.Tensor, torch.Tensor]
"""Token ids [B, T], and labels [B, T]: -100 where nothing is learned."""
Example = Callable[[random.Random, int, int, int], tuple[str, str] | None]
"""Function of random numbers, a level and two numbers of it to a message of the user and the answer
to it; None: others are drawn."""


def batches(
    example: Example, tokenizer: PreTrainedTokenizerBase, size: int, seed: int, pad: int
) -> Iterator[Batch]:
    """Yield batches of examples of all levels, without an end."""
    rng = random.Random(seed)
    while True:
        pairs: list[Pair] = []
        while len(pairs) < size:
            level = rng.choice(arithmetic.LEVELS)
            a, b = arithmetic.operand(rng, level), arithmetic.operand(rng, level)
            if (found := example(rng, level, a, b)) is not None:
                pairs.append(pair(tokenizer, *found))
        yield padded(pairs, pad)


def pair(tokenizer: PreTrainedTokenizerBase, question: str, answer: str) -> Pair:
    """Encode a user's message, by the chat template, and the answer with its end."""
    message = {"role": "user", "content": question}
    prompt = tokenizer.apply_chat_template([message], tokenize=False, add_generation_prompt=True)
    return tokenizer.encode(str(prompt)), tokenizer.encode(f"{answer}{tokenizer.eos_token}")


def padded(pairs: Sequence[Pair], pad: int) -> Batch:
    """Pad pairs on the right; only their answers are learned.

    Example: ``padded([([1], [2]), ([1, 1], [3, 3])], pad=0)`` has the ids ``[[1, 2, 0, 0],
    [1, 1, 3, 3]]`` and the labels ``[[-100, 2, -100, -100], [-100, -100, 3, 3]]``.
    """
    width = max(len(p) + len(a) for p, a in pairs)
    ids = [p + a + [pad] * (width - len(p) - len(a)) for p, a in pairs]
    labels = [[-100] * len(p) + a + [-100] * (width - len(p) - len(a)) for p, a in pairs]
    return torch.tensor(ids), torch.tensor(labels)


def taught(
    model: PreTrainedModel, batches: Iterator[Batch], steps: int, learning_rate: float
) -> Iterator[float]:
    """Train on as many batches as there are steps, and yield each one's loss."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, steps, pct_start=0.1)
    for _ in range(steps):
        ids, labels = next(batches)
        loss = model(input_ids=ids, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        yield loss.item()
