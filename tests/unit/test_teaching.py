"""What the programs in scripts/ teach: answers with their ends, and nothing before them."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import repeat
from types import ModuleType

import pytest
import torch
from programs import program

from ttrl.models.pretrained import TINY_BASE


@pytest.fixture
def scripts() -> Iterator[ModuleType]:
    """`scripts/teaching.py`."""
    with program("scripts/teaching.py") as found:
        yield found


def test_only_answers_are_learned(scripts: ModuleType) -> None:
    ids, labels = scripts.padded([([1], [2]), ([1, 1], [3, 3])], pad=9)
    assert ids.tolist() == [[1, 2, 9, 9], [1, 1, 3, 3]]
    assert labels.tolist() == [[-100, 2, -100, -100], [-100, -100, 3, 3]]


def test_a_pair_is_a_prompt_and_an_answer_that_ends(scripts: ModuleType) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(TINY_BASE)
    prompt, answer = scripts.pair(tokenizer, "What is 1 + 2?", "3")
    assert tokenizer.decode(prompt) == "What is 1 + 2?\nAnswer:\n"
    assert tokenizer.decode(answer) == f"3{tokenizer.eos_token}"


def test_a_step_follows_the_gradient_of_the_answers(scripts: ModuleType) -> None:
    """The first step of AdamW moves each weight by the rate, against its gradient's sign."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    sizes = {"vocab_size": 8, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    model = Qwen2ForCausalLM(Qwen2Config(**sizes, num_attention_heads=1, num_key_value_heads=1))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    ids, labels = scripts.padded([([1], [2, 3])], pad=0)
    logp = model(input_ids=ids).logits.log_softmax(-1)
    expected = -(logp[0, 0, 2] + logp[0, 1, 3]) / 2
    gradients = torch.autograd.grad(expected, list(model.parameters()))
    loss = next(scripts.taught(model, repeat((ids, labels)), steps=100, learning_rate=1e-3))
    assert loss == pytest.approx(expected.item(), abs=1e-6)
    rate = 1e-3 / 25  # OneCycleLR begins at a 25th of the peak
    for (name, p), gradient in zip(model.named_parameters(), gradients, strict=True):
        moved = p.detach() - before[name] * (1 - 0.1 * rate)
        seen = gradient.abs() > 1e-4
        assert torch.allclose(moved[seen], -rate * gradient[seen].sign(), rtol=1e-2), name
