"""Questions of one word each: what is the opposite of ...? For small models of real language.

    .venv/bin/python bench/opposites/questions.py FOLDER     writes train.jsonl and held_out.jsonl

The two halves share no word. A prompt begins with two examples, so that a model that was trained to
chat answers with the word alone.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

EXAMPLES = (("hot", "cold"), ("big", "small"))
PAIRS = """
fast slow, old new, rich poor, light dark, strong weak, happy sad, open closed, early late, full
empty, hard soft, high low, long short, thick thin, wide narrow, good bad, clean dirty, dry wet,
loud quiet, near far, up down, day night, in out, north south, first last, begin end, love hate,
buy sell, win lose, push pull, laugh cry, give take, come go, arrive depart, remember forget,
accept reject, attack defend, borrow lend, build destroy, increase decrease, include exclude,
import export, inside outside, above below, before after, always never, everything nothing, true
false, right wrong, top bottom, front back, east west, summer winter, heaven hell, peace war,
life death, friend enemy, hero villain, brother sister, father mother, husband wife, king queen,
boy girl, man woman, uncle aunt, nephew niece, buyer seller, teacher student, question answer,
success failure, victory defeat, strength weakness, wealth poverty, sweet sour, sharp dull,
smooth rough, tight loose, deep shallow, brave cowardly, polite rude, public private, safe
dangerous, simple complex, cheap expensive, ancient modern, awake asleep, alive dead, guilty
innocent, generous selfish, honest dishonest, legal illegal, possible impossible, visible
invisible, patient impatient, regular irregular, perfect imperfect, positive negative, optimist
pessimist, maximum minimum, major minor, male female, internal external, horizontal vertical,
permanent temporary, natural artificial, raw cooked, straight crooked, active passive, freeze
melt, rise fall, sink float, lead follow, hide show, lock unlock, tie untie, appear disappear,
agree disagree, connect disconnect, like dislike, shout whisper, praise blame, expand contract,
enter exit, succeed fail, ascend descend, majority minority, quantity quality, theory practice
"""
"""A word and its opposite; none comes twice."""


def main() -> None:
    """Write both halves."""
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    write(Path(sys.argv[1]))


def write(folder: Path) -> None:
    """Write train.jsonl and held_out.jsonl: every second question each."""
    rows = [{"prompt": prompt(word), "answer": answer} for word, answer in pairs().items()]
    for name, half in (("train", rows[::2]), ("held_out", rows[1::2])):
        text = "".join(json.dumps(row) + "\n" for row in half)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")


def pairs() -> dict[str, str]:
    """Return opposites by word."""
    return dict(pair.split() for pair in PAIRS.replace("\n", " ").split(","))


def prompt(word: str) -> str:
    """Put a word's question behind the examples."""
    asked = "Question: What is the opposite of {}?\nAnswer:"
    examples = (f"{asked.format(example)} {answer}\n\n" for example, answer in EXAMPLES)
    return "".join(examples) + asked.format(word)


def first_line(text: str) -> str | None:
    """Read an answer: the first line, without what surrounds the word."""
    return text.strip().partition("\n")[0].strip(" .\"'").lower() or None


if __name__ == "__main__":
    main()
