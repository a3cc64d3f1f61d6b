"""Time ``ttrl eval --select`` on recorded answers: 500 questions, 64 answers to each.

    python bench/selection.py [--show]

The answers are made up, so that nothing is sampled: additions with slips, as the embedded task's
worked answers have them, each with confidences of its tokens. All rules but ``reflection``, which
asks a model, choose among them; the reward model looks at one digit. Times are of the whole
command, from the start of Python to the tables.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from machine import describe

from ttrl.data.arithmetic import operand, question, worked_answer

RESULTS = Path(__file__).parent / "results" / "selection.json"
QUESTIONS, ANSWERS, SLIP = 500, 64, 0.15
RULES = "majority,weighted,best-of-n,borda,self-certainty,deepconf"
REWARD = """
def columns(prompt, solution):
    return 0.9 if len(solution) % 2 else 0.4
"""


def write_answers(folder: Path) -> None:
    """Write questions and recorded answers to them."""
    rng = random.Random("selection")
    asked, recorded = [], []
    for i in range(QUESTIONS):
        level = 1 + i % 4
        a, b = operand(rng, level), operand(rng, level)
        text = question(a, b)
        asked.append({"id": f"q{i}", "prompt": text, "answer": str(a + b)})
        answers = [worked_answer(a, b, rng, SLIP) for _ in range(ANSWERS)]
        completions = [
            {
                "text": answer,
                "tokens": len(answer),
                "finish_reason": "stop",
                "surprisal": round(rng.random(), 4),
                "confidence": {
                    "likeliest": 20,
                    "certainty": round(rng.gauss(7.5, 0.1), 4),
                    "tokens": [round(rng.gauss(10.5, 0.5), 4) for _ in answer],
                },
            }
            for answer in answers
        ]
        prompt = f"{text}\nAnswer:\n"
        recorded.append({"question": f"q{i}", "prompt": prompt, "completions": completions})
    for name, lines in (("questions", asked), ("answers", recorded)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    (folder / "reward.py").write_text(REWARD)


def measure() -> dict[str, Any]:
    """Run the command on answers of `write_answers`."""
    with TemporaryDirectory() as place:
        folder = Path(place)
        write_answers(folder)
        size = (folder / "answers.jsonl").stat().st_size
        command = [
            *(sys.executable, "-m", "ttrl.cli", "eval", "tiny-base", "questions.jsonl"),
            *("--recipe", "tiny-arithmetic", "--from-samples", "answers.jsonl"),
            *("--select", RULES, "--reward-model", "reward.py:columns"),
            *("--set", "selection.window=8", "--json", "scores.json"),
        ]
        begun = time.perf_counter()
        subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - begun
        (result,) = json.loads((folder / "scores.json").read_text())["results"]
    curves = result["selection"]["curves"]
    return {
        "questions": QUESTIONS,
        "answers": ANSWERS,
        "megabytes": round(size / 1e6, 1),
        "rules": [curve["name"] for curve in curves],
        "points": sum(len(curve["points"]) for curve in curves),
        "seconds": round(seconds, 1),
    }


def main() -> None:
    """Measure, or show what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--show", action="store_true", help="print what was measured before")
    if not parser.parse_args().show:
        RESULTS.write_text(json.dumps({"machine": describe(), **measure()}, indent=2) + "\n")
    print(RESULTS.read_text(), end="")


if __name__ == "__main__":
    main()
