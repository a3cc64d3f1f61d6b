"""Nothing that trains can see a reference answer."""

from __future__ import annotations

import json
import random
from pathlib import Path

from small_run import Run

from ttrl.data.arithmetic import question_rows


def _write(path: Path, answers: list[object]) -> str:
    """The embedded training questions as a file, with these answers; returns the override."""
    rows = question_rows("train")
    lines = [
        json.dumps({k: v for k, v in {**row, "answer": answer}.items() if v is not None})
        for row, answer in zip(rows, answers, strict=True)
    ]
    path.write_text("\n".join(lines))
    return f"data.train={path}"


def test_weights_do_not_depend_on_the_labels(run: Run, tmp_path: Path) -> None:
    answers = [row["answer"] for row in question_rows("train")]
    shuffled = random.Random(0).sample(answers, len(answers))
    assert shuffled != answers
    sources = {
        "right": _write(tmp_path / "right.jsonl", answers),
        "shuffled": _write(tmp_path / "shuffled.jsonl", shuffled),
        "removed": _write(tmp_path / "removed.jsonl", [None] * len(answers)),
    }
    runs = {name: run(name, [source]) for name, source in sources.items()}
    weights = {n: (f / "model" / "model.safetensors").read_bytes() for n, f in runs.items()}
    assert weights["right"] == weights["shuffled"] == weights["removed"]

    # The comparison can fail, and the three runs did differ in what they measured.
    other = run("other seed", [sources["right"], "seed=1"])
    assert (other / "model" / "model.safetensors").read_bytes() != weights["right"]
    accuracy = {
        name: json.loads((folder / "summary.json").read_text())["before"].get("pass@1")
        for name, folder in runs.items()
    }
    assert accuracy["right"] > accuracy["shuffled"]
    assert accuracy["removed"] is None


def test_nor_on_those_of_a_label_source_that_asks_the_policy(run: Run, tmp_path: Path) -> None:
    turn = Path(__file__).parents[2] / "bench" / "paraphrases" / "turned_around.py"
    options = ["data.held_out=none", "reward.labels=harmony", f"harmony.paraphrase={turn}:turn"]
    answers = [row["answer"] for row in question_rows("train")]
    found = set()
    for name, given in (("right", answers), ("removed", [None] * len(answers))):
        folder = run(name, [_write(tmp_path / f"{name}.jsonl", given), *options])
        found.add((folder / "model" / "model.safetensors").read_bytes())
    assert len(found) == 1
