"""Workflows and questions that cannot work: said in a line, and before anything is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import call
from groups import boxed

from ttrl.data.sources.question_list import QuestionList
from ttrl.rewards.voters import voters_of
from ttrl.settings.recipe import load_settings
from ttrl.types import Completion, FinishReason, Question, Turn, UserError

BEGIN = "from ttrl.rollout.workflows import Act, Conversation\n"


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("class Own(:", r"failed with SyntaxError: invalid syntax \(.*own\.py:2\)"),
        ("class Own(Conversation): pass", "is a Conversation without a plan: define turns"),
        ("class Other: pass", "defines no Own that can be called"),
        (
            "class Own(Conversation):\n    def turns(self):\n"
            "        return [[Act('a')], [Act('b', '{question}', [(0, 0)])]]",
            "turn 1, 'b': the template shows nothing of the answers that it sees",
        ),
    ],
)
def test_a_dry_run_refuses_it(
    code: str,
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    own = tmp_path / "own.py"
    own.write_text(f"{BEGIN}{code}\n")
    asked = ("--set", f"rollout.workflow={own}:Own")
    status, _, said = call(capsys, monkeypatch, "train", "tiny-arithmetic", *asked, "--dry-run")
    assert status == 2
    with pytest.raises(UserError, match=message):
        raise UserError(said)


def test_a_dry_run_refuses_a_template_that_shows_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ("--set", "agents.debate={question}", "--dry-run")
    status, _, said = call(capsys, monkeypatch, "train", "tiny-agents", *asked)
    assert status == 2 and "shows nothing of the answers" in said


@pytest.mark.parametrize(("first", "who"), [(0, (True, False)), (1, None)])
def test_turns_that_are_counted_from_one_leave_nobody_to_vote(
    first: int, who: tuple[bool, ...] | None
) -> None:
    """Without a voter no question would ever have a label, in silence."""
    said = [
        Completion((1,), (-0.1,), boxed("7"), FinishReason.STOP, turn=Turn(index, 0, 0, "writer"))
        for index in (first, first + 1)
    ]
    if who is not None:
        assert voters_of(said, "first", ()) == who
        return
    with pytest.raises(UserError, match=r"nobody would vote, .*Turn\.index is 0; count turns"):
        voters_of(said, "first", ())


def test_a_setting_of_agents_without_agents_is_named() -> None:
    with pytest.raises(
        UserError, match=r"agents\.voters = 'first': \[agents\] needs .* plan of your"
    ):
        load_settings("tiny-arithmetic", overrides=["agents.voters=first"])


def test_too_few_questions_say_how_many_there_are() -> None:
    asked = [Question("q1", "1 + 1?", (1,))]
    with pytest.raises(UserError, match="only 1 training question was loaded: set it to 1 or less"):
        QuestionList(asked, 8, seed=0)
