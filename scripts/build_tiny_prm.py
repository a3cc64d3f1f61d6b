"""Build the tiny process reward model that ships with ttrl, in a few minutes on one core.

    python scripts/build_tiny_prm.py OUTPUT_FOLDER

It learns from the checker of the embedded task: a step of an addition is right if it and all steps
before it are what `ttrl.data.arithmetic.worked_answer` writes without a slip. Its solutions are
worked answers with slips, of which some have a wrong character besides. The questions that ttrl
trains and measures on are left out. It starts from tiny-base, which knows where to look, and is
laid out, and read, as Skywork's models are.
"""

from __future__ import annotations

import argparse
import random
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.progress import track
from safetensors.torch import save_file
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits
from transformers import PreTrainedTokenizerBase, Qwen2Model

from ttrl.data import arithmetic
from ttrl.data.questions import load_questions
from ttrl.models.pretrained import TINY_BASE, load_tokenizer
from ttrl.reward_models.folder import Folder
from ttrl.reward_models.heads import SkyworkPrm
from ttrl.reward_models.texts import steps_of
from ttrl.rollout.pool import make_pool
from ttrl.rollout.sampling import voting
from ttrl.settings.recipe import load_settings

STEPS = 1000
BATCH = 128
LEARNING_RATE = 1e-3
SEED = 0
WRONG_CHARACTER = 0.15  # share of the solutions with one, which slips alone would not teach
LARGEST_SLIP = 0.4

CARD = """\
# tiny-prm

The process reward model of ttrl's embedded task: a Qwen2 of {parameters:,} parameters with a value
head, one token a byte, that says of each step of an addition whether all is right so far. It knows
nothing else.

Made by `scripts/build_tiny_prm.py` from the weights of tiny-base, on {examples:,} generated
solutions that the task's checker has judged. The questions of ttrl's splits are not among them.

Measured on {solutions:,} answers of tiny-base to the questions of `arithmetic:train`, at
temperature 1. A step counts as right if it and all before it are, and is taken for it from a score
of 0.5 on.

| | |
|---|---|
| right steps that are taken for right | {kept:.1%} |
| wrong steps that are taken for wrong | {caught:.1%} |
| mean score of right steps | {right:.3f} |
| mean score of wrong steps | {wrong:.3f} |

Apache-2.0, like the rest of the repository.
"""


def judged(a: int, b: int, solution: str) -> list[bool]:
    """Whether each step of a solution is right, with all before it."""
    right = arithmetic.worked_answer(a, b, random.Random(0), slip=0.0).split("\n")
    steps = steps_of(solution, "\n")
    return [steps[: i + 1] == right[: i + 1] for i in range(len(steps))]


def solution(rng: random.Random, a: int, b: int) -> str:
    """A worked answer, mostly with mistakes."""
    text = arithmetic.worked_answer(a, b, rng, rng.uniform(0, LARGEST_SLIP))
    if rng.random() < WRONG_CHARACTER:
        places = [i for i, c in enumerate(text) if c.isdigit()]
        place = rng.choice(places)
        text = f"{text[:place]}{rng.randrange(10)}{text[place + 1 :]}"
    return text


def right_so_far(a: int, b: int, text: str) -> list[bool]:
    """Whether each character of a solution is right, with all before it."""
    right = arithmetic.worked_answer(a, b, random.Random(0), slip=0.0) + "\n"
    return [text[: i + 1] == right[: i + 1] for i in range(len(text))]


def batch(
    rng: random.Random, tokenizer: PreTrainedTokenizerBase, reserved: frozenset[tuple[int, int]]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """(token ids, whether each is right with all before it, where solutions are, where steps end).

    Every token is judged, which teaches faster than the ends of the steps alone; a token is a
    character here.
    """
    rows: list[tuple[list[int], list[bool], str]] = []
    while len(rows) < BATCH:
        level = rng.choice(arithmetic.LEVELS)
        a, b = arithmetic.operand(rng, level), arithmetic.operand(rng, level)
        if (a, b) in reserved:
            continue
        question, text = f"{arithmetic.question(a, b)}\n", f"{solution(rng, a, b)}\n"
        ids = tokenizer.encode(question + text)
        rows.append((ids, right_so_far(a, b, text), question + text))
    width = max(len(ids) for ids, _, _ in rows)
    shape = (BATCH, width)
    ids_BT, label_BT = torch.zeros(shape, dtype=torch.int64), torch.zeros(shape)
    said_BT, end_BT = (torch.zeros(shape, dtype=torch.bool) for _ in range(2))
    for i, (ids, right, text) in enumerate(rows):
        begin = len(ids) - len(right)
        ids_BT[i, : len(ids)] = torch.tensor(ids)
        label_BT[i, begin : len(ids)] = torch.tensor(right).float()
        said_BT[i, begin : len(ids)] = True
        end_BT[i, : len(ids)] = torch.tensor([c == "\n" for c in text])
    return ids_BT, label_BT, said_BT, end_BT & said_BT


def train(tokenizer: PreTrainedTokenizerBase, steps: int) -> tuple[Qwen2Model, nn.Linear]:
    """A network and a value head that tell right steps from wrong ones."""
    network = Qwen2Model.from_pretrained(TINY_BASE, dtype=torch.float32)
    head = nn.Linear(network.config.hidden_size, 1)
    rng, reserved = random.Random(SEED), arithmetic.reserved()
    parameters = [*network.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, steps, pct_start=0.1)
    for step in track(range(steps), "training"):
        ids_BT, label_BT, said_BT, end_BT = batch(rng, tokenizer, reserved)
        hidden = network(input_ids=ids_BT).last_hidden_state  # causal: what follows is not seen
        value_BT = head(hidden).squeeze(-1)
        loss = binary_cross_entropy_with_logits(value_BT[said_BT], label_BT[said_BT])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0 or step + 1 == steps:
            at_ends = binary_cross_entropy_with_logits(value_BT[end_BT], label_BT[end_BT])
            print(f"step {step + 1}: loss {loss.item():.4f}, at ends of steps {at_ends.item():.4f}")
    return network, head


def measure(path: Path) -> dict[str, float]:
    """How the model judges answers of tiny-base to the training questions."""
    settings = load_settings("tiny-arithmetic", overrides=["rollout.votes=16"])
    tokenizer = load_tokenizer(settings.model)
    asked = load_questions(settings.data.train, settings.data, tokenizer).questions
    groups = make_pool(settings, tokenizer).sample(asked, voting(settings, "tiny-prm"))
    model = SkyworkPrm.load(Folder.of(str(path), settings), settings)
    scores: dict[bool, list[float]] = {True: [], False: []}
    for group in groups:
        a, b = operands(group.question.text or "")
        texts = [c.text for c in group.completions]
        for text, found in zip(texts, model.scores(group.question, texts), strict=True):
            for right, score in zip(judged(a, b, text), found, strict=True):
                scores[right].append(score)
    return {
        "solutions": sum(len(g.completions) for g in groups),
        "kept": share(score >= 0.5 for score in scores[True]),
        "caught": share(score < 0.5 for score in scores[False]),
        "right": share(scores[True]),
        "wrong": share(scores[False]),
    }


def operands(question: str) -> Sequence[int]:
    """The two numbers of a question."""
    return [int(word) for word in question.rstrip("?").split() if word.isdigit()]


def share(values: object) -> float:
    """The mean of numbers, or of truths."""
    found = [float(value) for value in values]  # type: ignore[attr-defined]
    return sum(found) / len(found)


def main() -> None:
    """Train and save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path, help="folder to write; must not exist")
    parser.add_argument("--steps", type=int, default=STEPS, help="optimizer steps")
    given = parser.parse_args()
    output: Path = given.output
    if output.exists():
        parser.error(f"{output} exists; name a new folder")
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    tokenizer = load_tokenizer(load_settings("tiny-arithmetic").model)
    started = time.perf_counter()
    network, head = train(tokenizer, given.steps)
    minutes = (time.perf_counter() - started) / 60
    output.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(TINY_BASE / name, output / name)
    network.config.architectures = ["Qwen2Model"]
    network.config.save_pretrained(output)
    weights = {f"model.{name}": tensor for name, tensor in network.state_dict().items()}
    weights |= {f"v_head.summary.{name}": tensor for name, tensor in head.state_dict().items()}
    halves = {name: tensor.to(torch.bfloat16).contiguous() for name, tensor in weights.items()}
    save_file(halves, output / "model.safetensors", {"format": "pt"})
    parameters = sum(tensor.numel() for tensor in weights.values())
    card = CARD.format(parameters=parameters, examples=given.steps * BATCH, **measure(output))
    (output / "README.md").write_text(card, encoding="utf-8")
    print(f"{card}\n{minutes:.1f} minutes of training -> {output}")


if __name__ == "__main__":
    main()
