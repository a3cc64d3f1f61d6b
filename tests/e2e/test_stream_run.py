"""Runs on questions that arrive: each is answered once, whatever happens to the run."""

from __future__ import annotations

import base64
import gzip
import importlib.util
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from compared_runs import differences
from python_process import run_python
from safetensors.torch import load_file
from small_run import interrupted
from step_lines import step_lines
from streamed import END, PER_QUESTION, SETTINGS, kept, rows, train_on, write

from ttrl.answers import default_grader
from ttrl.commands.runs import references, show
from ttrl.learner.optimizer import steady_rate
from ttrl.models.packed_model import load_policy_model
from ttrl.report.page.page import page
from ttrl.report.run_record import read_run
from ttrl.settings.recipe import load_settings
from ttrl.stream.phase import StreamPhase
from ttrl.types import UserError

KILLED = str(Path(__file__).with_name("killed_stream.py"))
STREAMED_RUN = str(Path(__file__).with_name("streamed.py"))
DEBATE = (
    "rollout.workflow=debate",
    "rollout.agents=2",
    "rollout.rounds=2",
    'agents.shown_as="{answer}\\n"',
    'agents.debate="{answers}{question}"',
)
CHAIN = (
    "rollout.workflow=chain",
    "rollout.agents=4",
    "agents.chain=verdict",
    'agents.judge="{generator} {question}"',
    'agents.refine="{generator} {verifier} {question}"',
)
CONVERSATIONS = {
    "all": DEBATE,
    "first": (*DEBATE, "agents.voters=first"),
    "last": (*DEBATE, "agents.voters=last"),
    "verdicts": (*CHAIN, "agents.voters=last"),
}
VOTES = {"all": 8, "first": 4, "last": 4, "verdicts": 2}
FILES = ("questions", "refused", "windows", "answers", "adapted")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stream of nine questions, with a line that is none."""
    folder = tmp_path_factory.mktemp("stream")
    write(folder / "q.jsonl", 9)
    path = folder / "q.jsonl"
    path.write_text(path.read_text().replace('{"id": "q5"', '{"no": 1}\n{"id": "q5"'))
    return folder


@pytest.fixture(scope="module")
def settings(place: Path) -> list[str]:
    return [*SETTINGS, f"data.train={place / 'q.jsonl'}"]


@pytest.fixture(scope="module")
def whole(place: Path, settings: list[str]) -> Path:
    """An uninterrupted run."""
    train_on(place / "whole", settings)
    return place / "whole"


def test_a_run_on_a_stream(whole: Path) -> None:
    lines = step_lines(whole)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5]
    answers = kept(whole, "answers")
    assert [(x["id"], x["step"]) for x in answers] == [(f"q{i}", i // 2 + 1) for i in range(9)]
    # By the votes of the step, before its update.
    record = read_run(whole)
    groups = [group for step in record.sampled for group in record.groups(step)]
    assert [x["answer"] for x in answers] == [group.label for group in groups]
    assert [x["first"] for x in answers] == [group.answers[0].answer for group in groups]
    assert [x["share"] for x in answers] == [group.majority_ratio for group in groups]
    assert [x["tokens"] for x in answers] == [sum(a.tokens for a in g.answers) for g in groups]
    done = [0, *(int(line["policy/updates"]) for line in lines)]
    updates = {line["step"]: sum(done[: line["step"]]) for line in lines}
    assert [x["updates"] for x in answers] == [updates[x["step"]] for x in answers]
    assert len(kept(whole, "refused")) == 1
    # Figures, from the answers and the rows.
    right = [
        [float(x[kind] == str(row["answer"])) for x, row in zip(answers, rows(9), strict=True)]
        for kind in ("first", "answer")
    ]
    summary = json.loads((whole / "summary.json").read_text())
    found = summary["stream"]
    assert (summary["steps"], summary["stopped"], found["ended"]) == (5, None, True)
    for kind, of in zip(("first", "majority"), right, strict=True):
        assert found[f"{kind}_accuracy_mean"] == pytest.approx(sum(of) / 9)
        assert found[f"{kind}_accuracy_last_third"] == pytest.approx(sum(of[6:]) / 3)
        assert lines[1][f"stream/{kind}_accuracy"] == sum(of[2:4]) / 2
        assert lines[1][f"stream/{kind}_accuracy_mean"] == sum(of[:4]) / 4
    assert found["tokens_per_question"] == sum(x["tokens"] for x in answers) / 9
    # The rate rises in four steps, and stays.
    own = load_settings("tiny-stream").optimizer
    rates = [line["policy/learning_rate"] for line in lines]
    assert rates == [steady_rate(step, 4, own) for step in range(1, 6)]
    assert rates[3] == rates[4] == own.learning_rate == 4 * rates[0]
    assert sorted(p.name for p in (whole / "checkpoints").iterdir()) == ["step_00004", "step_00005"]


def test_what_shows_runs_shows_this_one(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the answers of what has come, whatever has become of the input."""
    record = read_run(whole)
    known = references(record)
    assert known == {row["id"]: str(row["answer"]) for row in rows(9)}
    show(whole, None, 3, 2)
    said = capsys.readouterr().out
    assert "of 9 questions, each before it was learned from, the first sample was" in " ".join(
        said.split()
    )
    assert "stream/majority_accuracy_mean " in said
    assert "finished after 5 steps" in said and f"q8: 'What is {rows(9)[8]['prompt'][8:]}" in said
    html = page([record], [known], default_grader())
    assert "data.source" in html
    assert "A stream&#39;s questions, each before it was learned from" in html


def test_sigkill_at_several_moments_and_resume(
    whole: Path, settings: list[str], tmp_path: Path
) -> None:
    left = tmp_path / "left"
    for file, line in (("questions", 4), ("answers", 1), ("windows", 3)):
        done = run_python(KILLED, str(left), file, str(line), *settings, gpus=True)
        assert done.returncode == -9, done.stderr[-4000:]
    # With a checkpoint by now; before it, the run has begun again and again.
    assert [p.name for p in (left / "checkpoints").iterdir()] == ["step_00002"]
    assert not (left / "summary.json").exists()
    screen = train_on(left, settings, resume=True)
    assert "resuming from step 2" in screen
    assert differences(whole, left) == set()
    for name in FILES:
        assert (left / f"stream/{name}.jsonl").read_bytes() == (
            whole / f"stream/{name}.jsonl"
        ).read_bytes(), name


@pytest.mark.parametrize(
    ("name", "file"),
    [("all", "windows"), ("first", "answers"), ("last", "windows"), ("verdicts", "answers")],
)
def test_agents_answer_a_stream_killed_or_not(
    name: str, file: str, settings: list[str], tmp_path: Path
) -> None:
    """Whoever votes: all of them, the first turn, or the last."""
    talk = [*settings, *CONVERSATIONS[name], "data.max_prompt_tokens=512"]
    whole, left = tmp_path / "whole", tmp_path / "left"
    train_on(whole, talk)
    for line in (2, 3):
        done = run_python(KILLED, str(left), file, str(line), *talk, gpus=True)
        assert done.returncode == -9, done.stderr[-4000:]
    train_on(left, talk, resume=True)
    assert differences(whole, left) == set()
    for of in FILES:
        path = f"stream/{of}.jsonl"
        assert (left / path).read_bytes() == (whole / path).read_bytes(), of
    answers, record = kept(left, "answers"), read_run(left)
    assert [x["id"] for x in answers] == [f"q{i}" for i in range(9)]
    groups = [group for step in record.sampled for group in record.groups(step)]
    voters = [[a for a in group.answers if a.votes] for group in groups]
    assert [x["votes"] for x in answers] == list(map(len, voters))
    assert {len(of) for of in voters} == {VOTES[name]}
    assert [x["answer"] for x in answers] == [group.label for group in groups]
    for answer, of in zip(answers, voters, strict=True):
        assert answer["response"] in [a.text for a in of]  # who has no vote does not speak
    state = json.loads((left / "checkpoints/step_00005/state.json").read_text())["parts"]
    assert state["pool"]["lengths"] == state["history"] == {}


def test_the_page_of_a_run_that_went_on_has_all_references(
    whole: Path, settings: list[str], tmp_path: Path
) -> None:
    left = interrupted(whole, tmp_path / "left", step=4)
    train_on(left, [*settings, "report.every_s=600"], resume=True)
    (packed,) = re.findall(r'id="packed-0-questions">([^<]*)<', (left / "report.html").read_text())
    questions = json.loads(gzip.decompress(base64.b64decode(packed)))["questions"]
    found = {question["id"]: question["reference"] for question in questions}
    assert found == {row["id"]: str(row["answer"]) for row in rows(9)}


def test_a_run_that_went_back_keeps_its_answers(
    whole: Path, settings: list[str], tmp_path: Path
) -> None:
    left = interrupted(whole, tmp_path / "left", step=4)
    path = left / "stream" / "answers.jsonl"
    told = path.read_text().replace('"votes": 8', '"votes": 9')
    path.write_text(told)
    train_on(left, settings, resume=True)
    assert path.read_text() == told
    with pytest.raises(
        UserError, match="is finished, since its stream has ended: train on further"
    ):
        train_on(left, settings, resume=True)


def test_labels_are_not_learned_from(whole: Path, settings: list[str], tmp_path: Path) -> None:
    right = [row["answer"] for row in rows(9)]
    shuffled = random.Random(0).sample(right, 9)
    assert shuffled != right
    found = {}
    for name, answers in (("right", right), ("shuffled", shuffled), ("removed", [None] * 9)):
        source = write(
            tmp_path / f"{name}.jsonl",
            9,
            lambda i, _, answers=answers: answers[i],  # type: ignore[misc]
        )
        train_on(tmp_path / name, [*SETTINGS, source])
        run = tmp_path / name
        said = json.loads((run / "summary.json").read_text())["stream"]
        found[name] = said.get("majority_accuracy_mean")
        assert (run / "model/model.safetensors").read_bytes() == (
            whole / "model/model.safetensors"
        ).read_bytes()
        told = [(tmp_path / name / "stream/answers.jsonl").read_bytes()]
        assert told == [(whole / "stream/answers.jsonl").read_bytes()]
    assert found["right"] > found["shuffled"] and found["removed"] is None


# ---------------------------------------------------------------------------------------------
# Question by question


def test_each_question_begins_with_the_same_weights(tmp_path: Path) -> None:
    pytest.importorskip("peft", reason="peft is not installed")
    options = [*PER_QUESTION, write(tmp_path / "q.jsonl", 3), "checkpoint.every=1"]
    options.append("checkpoint.keep=9")
    run = tmp_path / "run"
    train_on(run, options)
    lines = step_lines(run)
    assert [line["policy/learning_rate"] for line in lines] == [1e-2] * 6
    assert sum(line["policy/updates"] for line in lines[::2]) > 0
    first, adapted = kept(run, "answers"), kept(run, "adapted")
    assert [(x["id"], x["step"]) for x in first] == [("q0", 1), ("q1", 3), ("q2", 5)]
    assert [(x["id"], x["step"]) for x in adapted] == [("q0", 2), ("q1", 4), ("q2", 6)]
    assert {x["updates"] for x in first} == {0}
    taken = [line["policy/updates"] for line in lines]
    assert [x["updates"] for x in adapted] == [sum(taken[i : i + 2]) for i in (0, 2, 4)]
    assert [x["share"] for x in first] != [x["share"] for x in adapted]
    # The adapters after each question are those before the first, without moments; in between not.
    saved = [
        load_file(p / "rank_00000.safetensors") for p in sorted((run / "checkpoints").iterdir())
    ]
    for after in (saved[1], saved[3], saved[5]):
        assert all(key.startswith("policy/weights/") for key in after)
        assert all(torch.equal(after[key], saved[5][key]) for key in saved[5])
        assert all(not after[key].any() for key in after if "lora_B" in key)
    assert any(saved[0][key].any() for key in saved[0] if "lora_B" in key)
    assert any(key.startswith("policy/exp_avg") for key in saved[0])
    assert_is_the_base(run)
    # From the middle of a question, and from between two.
    for step in (3, 4):
        left = interrupted(run, tmp_path / f"left{step}", step=step)
        train_on(left, options, resume=True)
        assert differences(run, left) == set()
    said = json.loads((run / "summary.json").read_text())["stream"]
    assert {"first_accuracy_mean", "adapted_first_accuracy_mean"} < said.keys()
    tokens = sum(line["rollout/tokens"] for line in lines) + sum(x["tokens"] for x in adapted)
    assert said["tokens_per_question"] == pytest.approx(tokens / 3)


def assert_is_the_base(run: Path) -> None:
    """The saved model is the starting one, bit for bit."""
    base = dict(load_policy_model(load_settings("tiny-stream").model).named_parameters())
    trained = load_file(run / "model" / "model.safetensors")
    assert len(trained) > 3 and trained.keys() <= base.keys()
    assert all(torch.equal(trained[name], base[name]) for name in trained)


def test_with_visits_and_without_resets_learning_goes_on(tmp_path: Path) -> None:
    options = [*SETTINGS, write(tmp_path / "q.jsonl", 3), "stream.visits=2"]
    train_on(tmp_path / "run", options)
    answers = kept(tmp_path / "run", "answers")
    assert [(x["id"], x["step"]) for x in answers] == [("q0", 1), ("q1", 1), ("q2", 3)]
    lines = step_lines(tmp_path / "run")
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert answers[2]["updates"] == sum(line["policy/updates"] for line in lines[:2]) > 0
    assert ["stream/first_accuracy" in line for line in lines] == [True, False, True, False]
    assert ["vote/flip_rate" in line for line in lines] == [False, True, False, True]


def test_max_steps_ends_a_stream_and_it_goes_on(tmp_path: Path) -> None:
    """The learning rate then goes by them, as everywhere."""
    source = write(tmp_path / "q.jsonl", 9)
    for name, steps in (("run", 2), ("whole", 4)):
        ends = [f"max_steps={steps}", "stream.warmup_steps=0", "checkpoint.every=1"]
        train_on(tmp_path / name, [*SETTINGS, source, *ends])
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["steps"], summary["stream"]["ended"]) == (2, False)
    longer = [*SETTINGS, source, "max_steps=4", "stream.warmup_steps=0", "checkpoint.every=1"]
    train_on(tmp_path / "run", longer, resume=True)
    assert [x["id"] for x in kept(tmp_path / "run", "answers")] == [f"q{i}" for i in range(8)]
    assert kept(tmp_path / "run", "windows") == kept(tmp_path / "whole", "windows")


# ---------------------------------------------------------------------------------------------
# As its user sees it


def command(folder: Path, *settings: str) -> list[str]:
    options = [f"--set={s}" for s in (*SETTINGS, *settings)]
    return ["-m", "ttrl.cli", "train", "tiny-stream", *options, "--run-dir", str(folder)]


def test_ctrl_c_while_it_waits(tmp_path: Path) -> None:
    """Standard input is what is waited for; its writer is there, and says nothing."""
    run = tmp_path / "run"
    with subprocess.Popen(
        [sys.executable, *command(run, "data.train=-")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin and process.stdout
        lines = [json.dumps(row) for row in rows(2)]
        process.stdin.write("\n".join(lines) + "\n")
        process.stdin.flush()
        for line in process.stdout:
            if "step 2: waiting for questions of -" in line:
                break
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.strip().splitlines()[-1] == (
        f"ttrl: interrupted; {run} holds its questions: the same command with --resume continues"
    )
    assert [x["id"] for x in kept(run, "answers")] == ["q0", "q1"]


@pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed is not installed"
)
def test_two_ranks_of_which_one_reads(tmp_path: Path) -> None:
    """Question by question, so that all first answers are of the same weights."""
    pytest.importorskip("peft", reason="peft is not installed")
    settings = [*PER_QUESTION, write(tmp_path / "q.jsonl", 3)]
    done = run_python(STREAMED_RUN, str(tmp_path / "two"), *settings, ranks=2)
    assert done.returncode == 0, done.stderr[-4000:]
    train_on(tmp_path / "one", settings)
    for name in ("questions", "refused", "windows", "answers"):
        assert kept(tmp_path / "two", name) == kept(tmp_path / "one", name), name
    assert [x["number"] for x in kept(tmp_path / "two", "adapted")] == [1, 2, 3]
    assert any(line["policy/updates"] for line in step_lines(tmp_path / "two"))
    assert_is_the_base(tmp_path / "two")


def test_a_file_that_is_written_to_while_it_is_learned_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By another process, in pieces of lines. No time limit is at work while it is waited for."""
    goes_on, limited = StreamPhase.goes_on, []

    def watched(phase: StreamPhase, step: int) -> bool:
        limited.append("watchdog" in {thread.name for thread in threading.enumerate()})
        return goes_on(phase, step)

    monkeypatch.setattr(StreamPhase, "goes_on", watched)
    path = tmp_path / "q.jsonl"
    path.touch()
    text = "".join(json.dumps(row) + "\n" for row in rows(5)) + END
    writer = (
        "import sys, time\n"
        "with open(sys.argv[1], 'a') as file:\n"
        "    for i in range(0, len(sys.argv[2]), 40):\n"
        "        file.write(sys.argv[2][i:i + 40]); file.flush(); time.sleep(0.05)\n"
    )
    with subprocess.Popen([sys.executable, "-c", writer, str(path), text], env=os.environ):
        train_on(tmp_path / "run", [*SETTINGS, f"data.train={path}", "stream.patience_s=0.1"])
    assert [x["id"] for x in kept(tmp_path / "run", "answers")] == [f"q{i}" for i in range(5)]
    assert kept(tmp_path / "run", "refused") == []
    assert len(limited) >= 4 and not any(limited)
