"""Model output before computer algebra: nothing runs, nothing outlasts the deadline, no secrets.

What this does not show: that the parser behind the gate is free of bugs. It sees no digit and no
name of the model's, in a process without secrets, files, children, or more time than the deadline.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from python_process import run_python

from ttrl.answers import Grader, extract_answer
from ttrl.answers.grader import Classes
from ttrl.answers.notation import Expression
from ttrl.answers.symbolic import Question
from ttrl.answers.workers import Worker, Workers
from ttrl.rewards import majority_vote
from ttrl.settings import AnswerSettings

DEADLINE_S = 2.0
SLACK_S = 5.0
"""For a busy machine: what ends at the deadline is killed within milliseconds on an idle one."""

CODE = [
    "__import__('os').system('touch {canary}')",
    "open('{canary}','w')",
    "(lambda: open('{canary}','w'))()",
    "().__class__.__base__.__subclasses__()",
    "\\operatorname{{__import__}}('os').system('touch {canary}')",
    "\\text{{__import__('os').system('touch {canary}')}}+1",
    "\\variable{{__import__('os').system('touch {canary}')}}",
    "\\frac{{open('{canary}','w')}}{{2}}",
    "x_{{open('{canary}','w')}}",
    "\\sqrt{{exec(\"open('{canary}','w')\")}}",
    "sympify(\"open('{canary}','w')\")",
    'N(\'open("{canary}","w")\')',
    "\\write18{{touch {canary}}}",
    '"]]}}\n{{"sides": [["open(\'{canary}\',\'w\')", []]], "relation": ""}}',
]
COSTLY = [
    "9^{9^{9^9}}",
    "(10^{9})!",
    "2^{2^{31}}+1",
    "((9^9)^{9999})^{9999}",
    r"\binom{10^9}{10^8}",
    r"\frac{1}{0}",
    r"\sqrt[10^9]{2}",
    "9" * 280,
    "9" * 290 + "+x",
    "((((x!)!)!)!)!",
    r"\lfloor 10^{9^9}\rfloor",
    "x^{" * 25 + "x" + "}" * 25,
    "(" * 25 + "x" + ")" * 25 + "+1",
    r"\frac{" * 20 + "x" + "}{y}" * 20,
    r"\sqrt{" * 25 + "x" + "}" * 25,
    "(x+y)" * 55,
    "|" * 29 + "x" + "|" * 29,
    "x!" * 100,
    "{" * 1_000_000,
    "\\boxed{" + "{" * 500_000 + "}" * 500_000 + "}",
    "(" * 10_000 + "1" + ")" * 10_000,
    "\\frac{" * 10_000 + "1" + "}{2}" * 10_000,
    "\0\1\2\x1b[31m\r\n\u2028",
    "\\boxed{\\boxed{}}}}}{{",
    "1," * 499,
    "=" * 999,
    "x=" * 499 + "x",
    "\\cup" * 200,
    "\\begin{pmatrix}" + "1&" * 400 + "1\\end{pmatrix}",
    "\\{" * 400 + "\\}" * 400,
    "\\pm" * 300,
    "\ud800",
]


@pytest.fixture(scope="module")
def grader() -> Iterator[Grader]:
    with Grader(AnswerSettings(deadline_s=DEADLINE_S, workers=2)) as one:
        assert one.equivalent(r"\sqrt{4}", "2")  # started
        yield one


HONEST = [r"\sqrt{144}", "12", r"\frac{24}{2}", "13"]


def check_honest(found: Classes) -> None:
    assert [found.name_of[a] for a in HONEST] == ["12", "12", "12", "13"]


@pytest.mark.parametrize("code", CODE)
def test_nothing_runs(grader: Grader, code: str, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    answer = code.format(canary=canary)
    found = grader.classes([*HONEST, answer, f"{answer}+1", f"x={answer}", f"({answer}, 2)"])
    check_honest(found)
    assert not canary.exists()


def test_nothing_outlasts_the_deadline_and_honest_answers_stay_right(
    grader: Grader, monkeypatch: pytest.MonkeyPatch
) -> None:
    took = []
    ask = Worker.ask

    def timed(worker: Worker, question: str, deadline_s: float) -> dict[str, Any]:
        started = time.monotonic()
        try:
            return ask(worker, question, deadline_s)
        finally:
            took.append(time.monotonic() - started)

    monkeypatch.setattr(Worker, "ask", timed)
    found = grader.classes([*HONEST, *COSTLY, *(extract_answer(c) or "none" for c in COSTLY)])
    check_honest(found)
    assert len(took) > 10
    assert max(took) < 1.1 * DEADLINE_S + SLACK_S
    for worker in grader._workers._alive:
        peak = Path(f"/proc/{worker.process.pid}/status").read_text()
        (kilobytes,) = [line.split()[1] for line in peak.splitlines() if line.startswith("VmPeak")]
        assert int(kilobytes) < 1024 * grader.settings.memory_mb


def endless(settings: AnswerSettings) -> Worker:
    """A worker that is ready, and then never says anything."""
    script = "print('{}', flush=True)\nwhile True: pass\n"
    worker = Worker.__new__(Worker)
    worker.process = subprocess.Popen(
        [sys.executable, "-I", "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    worker.unread = b""
    return worker


def test_what_takes_too_long_is_killed_and_compared_by_spelling(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ttrl.answers.workers.Worker", endless)
    answers = [r"\sqrt{4}", r"\sqrt{4}", "2", "2", "2", r"$\sqrt4$", "3"]
    with Grader(AnswerSettings(deadline_s=0.5)) as grader:
        vote = majority_vote(answers, grader)
        assert not grader._workers._alive
        monkeypatch.setattr("ttrl.answers.workers.Worker", None)
        assert majority_vote(answers, grader) == vote  # remembered: there is nobody to ask again
    assert (vote.majority, vote.counts, vote.undecided) == ("2", (3, 3, 1), 3)
    assert vote.clusters_G == (1, 1, 0, 0, 0, 1, 2)


def test_a_worker_runs_out_of_memory_alone() -> None:
    workers = Workers(AnswerSettings(memory_mb=256, workers=1))
    power = Question((Expression(r"{\variable{a0}+\variable{a1}}!", ("1", "2")),))
    try:
        assert workers.ask([power]) == ["6"]
        (worker,) = workers._alive
        limits = Path(f"/proc/{worker.process.pid}/limits").read_text()
        rows = {line[:26].strip(): line[26:].split()[0] for line in limits.splitlines()[1:]}
        assert rows["Max address space"] == str(256 * 2**20)
        assert rows["Max file size"] == rows["Max core file size"] == rows["Max processes"] == "0"
        assert rows["Max open files"] == "16"
        assert int(rows["Max cpu time"]) < 60
    finally:
        workers.close()


def test_from_a_thread_and_from_a_task(grader: Grader) -> None:
    answers = [*HONEST, *COSTLY[:10], r"\sqrt{3}", r"3^{1/2}"]
    expected = grader.classes(answers)
    results = []
    with Grader(AnswerSettings(deadline_s=60.0, workers=2)) as fresh:
        thread = threading.Thread(target=lambda: results.append(fresh.classes(answers)))
        thread.start()
        thread.join()
    assert results[0].name_of == expected.name_of

    async def task() -> tuple[Classes, Classes]:
        return grader.classes([*answers, "4"]), await asyncio.to_thread(grader.classes, answers)

    direct, threaded = asyncio.run(task())
    assert {a: direct.name_of[a] for a in answers} == threaded.name_of == expected.name_of


def test_a_worker_that_is_killed_while_it_grades_changes_no_vote() -> None:
    answers = [rf"\sqrt{{{n % 40}}}+{n % 7}" for n in range(200)] + [r"\sqrt{4}+1", "3"] * 10
    with Grader(AnswerSettings(deadline_s=60.0, workers=2)) as grader:
        expected = majority_vote(answers, grader)
    with Grader(AnswerSettings(deadline_s=60.0, workers=2)) as grader:
        votes = []
        thread = threading.Thread(target=lambda: votes.append(majority_vote(answers, grader)))
        thread.start()
        kills = 0
        while thread.is_alive() and kills < 2:
            for worker in list(grader._workers._alive)[:1]:
                if worker not in grader._workers._idle:
                    os.kill(worker.process.pid, signal.SIGKILL)
                    kills += 1
            time.sleep(0.02)
        thread.join()
    assert kills > 0
    assert votes == [expected]
    assert expected.undecided == 0


def test_no_secrets_in_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "canary-4711")
    monkeypatch.setenv("PYTHONSTARTUP", "canary-4711")
    with Grader() as grader:
        assert grader.equivalent(r"\sqrt4", "2")
        (worker,) = grader._workers._alive
        process = Path(f"/proc/{worker.process.pid}")
        environment = (process / "environ").read_bytes().split(b"\0")
        assert {e.partition(b"=")[0] for e in environment if e} <= {
            *(b"SYMPY_GROUND_TYPES", b"MPMATH_NOGMPY", b"OMP_NUM_THREADS", b"LD_LIBRARY_PATH"),
            b"LC_CTYPE",  # Python's own
        }
        assert b"canary" not in (process / "cmdline").read_bytes()
        assert os.getsid(worker.process.pid) != os.getsid(0)


def test_close_does_not_wait_for_who_computes_or_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    grader = Grader(AnswerSettings(deadline_s=600.0, workers=2))
    errors = []

    def ask() -> None:
        with pytest.raises(RuntimeError, match="closed") as raised:
            grader.classes([r"\sqrt2", r"\sqrt3", r"\sqrt5"])
        errors.append(raised.value)

    monkeypatch.setattr("ttrl.answers.workers.Worker", endless)
    thread = threading.Thread(target=ask)
    thread.start()
    while len(grader._workers._alive) < 2:
        time.sleep(0.01)
    pids = [worker.process.pid for worker in grader._workers._alive]
    grader.close()
    thread.join(60)
    assert len(errors) == 1
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_a_fork_has_workers_of_its_own() -> None:
    """Those of its parent would give each the other's replies, and its threads are not there."""
    program = r"""
import os, signal
from ttrl.answers import Grader
from ttrl.settings import AnswerSettings

def right(numbers):
    answers = [(rf"\sqrt{{{n}}}+1", rf"1+\sqrt{{{n}}}", rf"2+\sqrt{{{n}}}") for n in numbers]
    found = [grader.classes(three).name_of for three in answers]
    return all(f[a] == f[b] != f[c] for f, (a, b, c) in zip(found, answers))

with Grader(AnswerSettings(workers=2, deadline_s=60)) as grader:
    assert right([2])
    child = os.fork()
    if not child:
        signal.alarm(120)
        ok = right(range(1001, 1020))
        grader.close()
        os._exit(not ok)
    assert right(range(2001, 2020))
    assert os.waitpid(child, 0)[1] == 0
    assert right([3])
"""
    done = run_python("-c", program)
    assert done.returncode == 0, done.stderr


def test_no_process_is_left() -> None:
    grader = Grader(AnswerSettings(workers=2))
    grader.classes([r"\sqrt2", r"\sqrt3", r"\sqrt5", r"\sqrt7"])
    pids = [worker.process.pid for worker in grader._workers._alive]
    assert pids
    grader.close()
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)  # nor a zombie


@pytest.mark.parametrize("end", ["sys.exit()", "os._exit(1)", "os.kill(os.getpid(), 9)"])
def test_no_orphan_is_left(end: str) -> None:
    code = (
        "import os, sys\n"
        "from ttrl.answers import default_grader\n"
        "assert default_grader().equivalent(r'\\sqrt{4}', '2')\n"
        "print(*[w.process.pid for w in default_grader()._workers._alive], flush=True)\n"
    )
    done = run_python("-c", code + end)
    (pid,) = done.stdout.split()
    until = time.monotonic() + 30
    while Path(f"/proc/{pid}/cmdline").exists() and time.monotonic() < until:
        if not Path(f"/proc/{pid}/cmdline").read_bytes():
            break  # a zombie, which is init's to collect
        time.sleep(0.05)
    else:
        assert not Path(f"/proc/{pid}").exists()


def test_a_worker_reads_json_alone() -> None:
    worker = Worker(AnswerSettings())
    worker.wait()
    try:
        for line in ("open('/tmp/canary','w')", "[]", '{"sides": 1, "relation": ""}', "null"):
            assert worker.ask(line, 60.0) == {"key": None}
        question = json.dumps({"sides": [["\\variable{a0}", ["2"]]], "relation": ""})
        assert worker.ask(question, 60.0) == {"key": "2"}
    finally:
        worker.close()
