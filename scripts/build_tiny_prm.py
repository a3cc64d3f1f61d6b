"""Build the tiny process reward model that ships with ttrl, in two minutes on one core.

    python scripts/build_tiny_prm.py OUTPUT_FOLDER

It is tiny-base, trained further on generated solutions that the embedded task's checker has passed:
a step is right if it, and all before it, are what `ttrl.data.arithmetic.worked_answer` writes
without a slip. So it gives a slip a small probability, which is how it is read
(`ttrl.reward_models.likelihood`). The questions that ttrl trains and measures on are left out.
"""

from __future__ import annotations

import argparse
import random
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean

import torch
from rich.progress import track
from teaching import Batch, batches, taught
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from ttrl.data import arithmetic
from ttrl.data.questions import load_questions
from ttrl.models.pretrained import TINY_BASE, load_tokenizer
from ttrl.reward_models.folder import Folder
from ttrl.reward_models.likelihood import Likelihood
from ttrl.reward_models.texts import steps_of
from ttrl.rollout.pool import make_pool
from ttrl.rollout.sampling import voting
from ttrl.settings.recipe import load_settings

STEPS = 300
BATCH = 64
LEARNING_RATE = 1e-3
SEED = 0
SLIP = 0.2  # of a column, in the solutions that the checker is shown

CARD = """\
# tiny-prm

The process reward model of ttrl's embedded task: a Qwen2 of {parameters:,} parameters, one token a
byte. The score of a step of an addition is the probability, under this model, of all that is
written up to there. It knows nothing else.

Made by `scripts/build_tiny_prm.py` from tiny-base, on {examples:,} generated solutions that the
task's checker has passed. The questions of ttrl's splits are not among them.

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


def corpus(tokenizer: PreTrainedTokenizerBase) -> Iterator[Batch]:
    """Yield batches of solutions that the checker passes."""
    reserved = arithmetic.reserved()

    def example(rng: random.Random, level: int, a: int, b: int) -> tuple[str, str] | None:
        text = arithmetic.worked_answer(a, b, rng, SLIP)
        is_learned = (a, b) not in reserved and all(judged(a, b, text))
        return (arithmetic.question(a, b), text) if is_learned else None

    return batches(example, tokenizer, BATCH, SEED, pad=0)


def train(tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """A language model of right solutions."""
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(TINY_BASE, dtype=torch.float32)
    losses = taught(model, corpus(tokenizer), STEPS, LEARNING_RATE)
    for step, loss in enumerate(track(losses, "training", STEPS)):
        if step % 50 == 0 or step + 1 == STEPS:
            print(f"step {step + 1}: loss {loss:.4f}")
    return model


def measure(path: Path) -> dict[str, float]:
    """How the model judges answers of tiny-base to the training questions."""
    settings = load_settings("tiny-arithmetic", overrides=["rollout.votes=32"])
    tokenizer = load_tokenizer(settings.model)
    asked = load_questions(settings.data.train, settings.data, tokenizer).questions
    groups = make_pool(settings, tokenizer).sample(asked, voting(settings, "tiny-prm"))
    model = Likelihood.load(Folder.of(str(path), settings), settings)
    scores: dict[bool, list[float]] = {True: [], False: []}
    for group in groups:
        a, b = operands(group.question.text or "")
        texts = [c.text for c in group.completions]
        for text, found in zip(texts, model.scores(group.question, texts), strict=True):
            for right, score in zip(judged(a, b, text), found, strict=True):
                scores[right].append(score)
    return {
        "solutions": sum(len(g.completions) for g in groups),
        "kept": fmean(score >= 0.5 for score in scores[True]),
        "caught": fmean(score < 0.5 for score in scores[False]),
        "right": fmean(scores[True]),
        "wrong": fmean(scores[False]),
    }


def operands(question: str) -> Sequence[int]:
    """The two numbers of a question."""
    return [int(word) for word in question.rstrip("?").split() if word.isdigit()]


def main() -> None:
    """Train and save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path, help="folder to write; must not exist")
    output: Path = parser.parse_args().output
    if output.exists():
        parser.error(f"{output} exists; name a new folder")
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    tokenizer = load_tokenizer(load_settings("tiny-arithmetic").model)
    started = time.perf_counter()
    model = train(tokenizer)
    minutes = (time.perf_counter() - started) / 60
    torch.nn.Module.to(model, torch.bfloat16)
    model.save_pretrained(output)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(TINY_BASE / name, output / name)
    examples = STEPS * BATCH
    card = CARD.format(parameters=model.num_parameters(), examples=examples, **measure(output))
    (output / "README.md").write_text(card, encoding="utf-8")
    print(f"{card}\n{minutes:.1f} minutes of training -> {output}")


if __name__ == "__main__":
    main()
