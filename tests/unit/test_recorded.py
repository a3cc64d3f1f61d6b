"""Recorded rollouts: what comes back is what was sampled, and anything else is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file
from tiny_models import make_settings

from ttrl.rewards import majority_vote
from ttrl.rollout.engines.recorded import RecordedEngine, tokens_of
from ttrl.rollout.pool import RolloutPool
from ttrl.rollout.sampling import SamplingParams
from ttrl.run.run_folder import RunFolder
from ttrl.types import (
    Completion,
    CompletionGroup,
    Estimate,
    FinishReason,
    Question,
    Turn,
    UserError,
)
from ttrl.types.top_logprobs import TopLogprobs

PARAMS = SamplingParams(n=3, temperature=1.0, max_new_tokens=9, stream=(0, "rollout", 1))
QUESTIONS = [Question(id, "?", (1, 2)) for id in ("a", "b")]


def _completion(rng: np.random.Generator, text: str) -> Completion:
    length = int(rng.integers(1, 9))
    logprobs = (-rng.exponential(size=length)).astype(np.float32).tolist()
    tokens = rng.integers(0, 200_000, size=length).tolist()
    reason = FinishReason.STOP if length < 8 else FinishReason.LENGTH
    return Completion(tuple(tokens), tuple(logprobs), text, reason)


@pytest.fixture
def groups() -> list[CompletionGroup]:
    rng = np.random.default_rng(0)
    texts = ("\\boxed{1}", "\ud800\n\u2028", "")
    return [
        CompletionGroup(q, tuple(_completion(rng, text) for text in texts), 1) for q in QUESTIONS
    ]


@pytest.fixture
def folder(groups: list[CompletionGroup], tmp_path: Path) -> Path:
    run = RunFolder(tmp_path / "run")
    run.create(make_settings())
    run.keep_answers(1, groups)
    return run.path / "rollouts"


def test_what_comes_back_is_what_was_sampled(groups: list[CompletionGroup], folder: Path) -> None:
    pool = RolloutPool(RecordedEngine(folder))
    pool.policy_version = 1
    assert pool.sample(QUESTIONS, PARAMS) == groups
    assert pool.sample(QUESTIONS[::-1], PARAMS) == groups[::-1]


def test_so_they_do_when_they_have_been_judged(groups: list[CompletionGroup], folder: Path) -> None:
    estimate = Estimate(majority_vote(["1", None, None]), (1.0, 0.0, 0.0), "1")
    before = (folder / "step_00001.jsonl").read_bytes()
    RunFolder(folder.parent).keep_estimates(1, groups, [estimate] * len(groups))
    assert (folder / "step_00001.jsonl").read_bytes() != before
    assert list(RecordedEngine(folder).sample(QUESTIONS, PARAMS)) == [
        (i, group.completions) for i, group in enumerate(groups)
    ]


def test_greedy_answers_lie_beside_the_votes(groups: list[CompletionGroup], folder: Path) -> None:
    asked = replace(PARAMS, n=1, stream=(0, "rollout", 1, "greedy"))
    with pytest.raises(UserError, match="step 1 has 0 greedy answers to question 'a'; expected 1"):
        list(RecordedEngine(folder).sample(QUESTIONS, asked))
    rng = np.random.default_rng(1)
    compared = [replace(g, greedy=_completion(rng, "greedy")) for g in groups]
    run = RunFolder(folder.parent)
    run.keep_answers(1, compared)
    estimate = Estimate(majority_vote(["1", None, None]), (1.0, 0.0, 0.0), "1", greedy_reward=1.0)
    for _ in range(2):  # before and after they are judged
        engine = RecordedEngine(folder)
        assert list(engine.sample(QUESTIONS, asked)) == [
            (i, (group.greedy,)) for i, group in enumerate(compared)
        ]
        assert list(engine.sample(QUESTIONS, PARAMS)) == [
            (i, group.completions) for i, group in enumerate(compared)
        ]
        run.keep_estimates(1, compared, [estimate] * len(groups))
    row = json.loads((folder / "step_00001.jsonl").open().readline())
    assert (row["greedy"]["text"], row["greedy"]["reward"]) == ("greedy", 1.0)
    rewritten(folder, lambda rows: rows[0]["greedy"].update(text="edited"))
    with pytest.raises(UserError, match="does not say what was sampled"):
        list(RecordedEngine(folder).sample(QUESTIONS, PARAMS))


def _likeliest(completion: Completion, *, whole: bool) -> TopLogprobs:
    """Of places with 1, 2, 3, 1, ... tokens."""
    return TopLogprobs.of(
        (
            ([token, *range(i % 3)], [logprob, *[-0.1 * i - 1] * (i % 3)])
            for i, (token, logprob) in enumerate(
                zip(completion.token_ids, completion.logprobs, strict=True)
            )
        ),
        whole=whole,
    )


def noted(group: CompletionGroup) -> CompletionGroup:
    """All possible tokens of the first answer, some of the second one, none of the third."""
    first, second, third = group.completions
    return replace(
        group,
        completions=(
            replace(first, top_logprobs=_likeliest(first, whole=True)),
            replace(second, top_logprobs=_likeliest(second, whole=False)),
            third,
        ),
    )


def test_the_likeliest_tokens_come_back(groups: list[CompletionGroup], folder: Path) -> None:
    run = RunFolder(folder.parent)
    run.keep_answers(1, [noted(group) for group in groups])
    found = dict(RecordedEngine(folder).sample(QUESTIONS, PARAMS))
    assert found == {i: noted(group).completions for i, group in enumerate(groups)}
    assert found != {i: group.completions for i, group in enumerate(groups)}
    one = replace(PARAMS, n=1)
    for asked in (
        replace(one, top_k=5),
        replace(one, first=1, top_logprobs=5),
    ):
        parts = RecordedEngine(folder).sample(QUESTIONS, asked)
        assert [c for _, c in parts] == [
            noted(g).completions[asked.first : asked.first + 1] for g in groups
        ]


@pytest.mark.parametrize("asked", [{"top_k": 5}, {"top_logprobs": 5}])
def test_a_record_without_what_is_needed_is_refused(asked: dict, folder: Path) -> None:
    with pytest.raises(UserError, match="do not say what else could have been drawn"):
        list(RecordedEngine(folder).sample(QUESTIONS, replace(PARAMS, **asked)))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("top_kinds", 3),
        ("top_kinds", 0),
        ("top_counts", 2),
        ("top_ids", -1),
        ("top_logprobs", 0.5),
        ("top_logprobs", -float("inf")),
    ],
)
def test_likeliest_tokens_that_cannot_be_are_refused(
    name: str, value: float, groups: list[CompletionGroup], folder: Path
) -> None:
    RunFolder(folder.parent).keep_answers(1, [noted(group) for group in groups])
    with safe_open(folder / "step_00001.safetensors", "np") as file:
        array = file.get_tensor(name)
    array[0] = value
    rewritten(folder, lambda rows: None, **{name: array})
    with pytest.raises(UserError, match=r"cannot read step 1 .*top_ids and top_logprobs"):
        list(RecordedEngine(folder).sample(QUESTIONS, PARAMS))


def test_rounds_come_back_too(groups: list[CompletionGroup], folder: Path) -> None:
    parts = RecordedEngine(folder).sample(QUESTIONS, replace(PARAMS, n=1, first=2))
    assert list(parts) == [(i, g.completions[2:]) for i, g in enumerate(groups)]


@pytest.mark.parametrize(
    ("changes", "refusal"),
    [
        ({"n": 4}, "step 1 has 3 answers to question 'a'; expected 4"),
        ({"stream": (0, "rollout", 2)}, "cannot read step 2"),
        ({"stream": (0, "exam", "train", 1)}, "only votes are recorded"),
    ],
)
def test_anything_else_is_refused(changes: dict, refusal: str, folder: Path) -> None:
    with pytest.raises(UserError, match=refusal):
        list(RecordedEngine(folder).sample(QUESTIONS, replace(PARAMS, **changes)))


def test_other_questions_and_folders_are_refused(folder: Path) -> None:
    with pytest.raises(UserError, match="0 answers to question 'c'"):
        list(RecordedEngine(folder).sample([Question("c", "?", (1,))], PARAMS))
    with pytest.raises(UserError, match=r"there is no step_00001\.safetensors"):
        RecordedEngine(folder.parent)


@pytest.mark.parametrize("kind", ["jsonl", "safetensors"])
@pytest.mark.parametrize("step", [1, 2])
def test_a_broken_file_is_named_before_anything_is_trained(
    kind: str, step: int, folder: Path
) -> None:
    for suffix in ("jsonl", "safetensors"):
        (folder / f"step_00002.{suffix}").write_bytes(
            (folder / f"step_00001.{suffix}").read_bytes()
        )
    RecordedEngine(folder)
    path = folder / f"step_0000{step}.{kind}"
    whole = path.read_bytes()
    path.write_bytes(whole[:-40])
    with pytest.raises(UserError, match=f"cannot read step {step} from"):
        RecordedEngine(folder)
    path.write_bytes(whole)
    (folder / f"step_00002.{kind}").unlink()
    with pytest.raises(UserError, match="cannot read step 2 from"):
        RecordedEngine(folder)


def test_another_prompt_is_refused(folder: Path) -> None:
    other = replace(QUESTIONS[0], prompt="? Really?")
    with pytest.raises(UserError, match="'a' in step 1 differs from character 1 on: '', expected"):
        list(RecordedEngine(folder).sample([other], PARAMS))


def rewritten(folder: Path, edit: Callable[[list[Any]], None], **arrays: Any) -> None:
    """Edit the lines of step 1, and replace some of its arrays."""
    lines, tokens = folder / "step_00001.jsonl", folder / "step_00001.safetensors"
    rows = [json.loads(line) for line in lines.read_text().splitlines()]
    edit(rows)
    lines.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with safe_open(tokens, "np") as file:
        stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no dict
        metadata = file.metadata()
    save_file({**stored, **arrays}, tokens, metadata)


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda rows: rows.reverse(), "line 1: the answers have other lengths"),
        (lambda rows: rows[0]["completions"].pop(), "line 2: the answers have other lengths"),
        (lambda rows: rows[1]["completions"].pop(), "does not say what was sampled"),
        (lambda rows: rows[1]["completions"].append(rows[1]["completions"][0]), "other lengths"),
        (lambda rows: rows[0]["completions"][0].update(tokens=99), "other lengths"),
        (lambda rows: rows[0]["completions"][0].update(text="8"), "does not say what was sampled"),
        (lambda rows: rows[1].update(question="a"), "line 2: question 'a' is there twice"),
        (lambda rows: rows.__setitem__(1, [1]), "line 2: .* whose 'question' is of type str"),
        (lambda rows: rows.__setitem__(1, None), "line 2: .* whose 'question' is of type str"),
        (lambda rows: rows[0].update(question=["a"]), "whose 'question' is of type str"),
        (lambda rows: rows[0].update(prompt=None), "whose 'prompt' is of type str"),
        (lambda rows: rows[0].update(completions=None), "whose 'completions' is of type list"),
        (lambda rows: rows[0].update(completions="x"), "whose 'completions' is of type list"),
        (lambda rows: rows[0]["completions"].__setitem__(0, 5), "whose 'tokens' is of type int"),
        (lambda rows: rows[0]["completions"][0].update(text=5), "whose 'text' is of type str"),
        (lambda rows: rows[0]["completions"][0].update(finish_reason="x"), "not a valid Finish"),
    ],
)
def test_edited_answers_are_refused(
    edit: Callable[[list[Any]], None], words: str, folder: Path
) -> None:
    rewritten(folder, edit)
    with pytest.raises(UserError, match=words):
        list(RecordedEngine(folder).sample(QUESTIONS, PARAMS))


def test_lines_in_another_order_are_refused_even_with_answers_as_long(
    groups: list[CompletionGroup], folder: Path
) -> None:
    """Then only the digest can tell; a record of an earlier version has none, and is read."""
    same = [replace(g, completions=groups[0].completions) for g in groups]
    (folder / "step_00001.safetensors").write_bytes(tokens_of(same))

    def as_long(rows: list[Any]) -> None:
        rows[1]["completions"] = rows[0]["completions"]

    rewritten(folder, as_long)
    assert len(list(RecordedEngine(folder).sample(QUESTIONS, PARAMS))) == 2
    rewritten(folder, lambda rows: rows.reverse())
    with pytest.raises(UserError, match="does not say what was sampled"):
        list(RecordedEngine(folder).sample(QUESTIONS, PARAMS))


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"lengths": np.array([1, 2], np.int32)}, "do not divide into the lengths"),
        ({"lengths": np.array([1, 2], np.int64)}, r"lengths is int64\[2\], expected int32"),
        ({"token_ids": np.zeros((2, 2), np.int32)}, "token_ids is int32.*expected int32 in one"),
        ({"logprobs": np.zeros(3, np.float32)}, "and 3 logprobs do not divide"),
        ({"logprobs": np.zeros(3, np.float64)}, "logprobs is float64"),
    ],
)
def test_arrays_of_another_kind_are_refused(
    arrays: dict[str, Any], words: str, folder: Path
) -> None:
    rewritten(folder, lambda rows: None, **arrays)
    with pytest.raises(UserError, match=f"cannot read step 1 .*{words}"):
        list(RecordedEngine(folder).sample(QUESTIONS, PARAMS))


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("token_ids", -1, "token_ids has negative ones"),
        ("logprobs", 0.5, "no logarithm of a probability"),
        ("logprobs", float("nan"), "no logarithm of a probability"),
        ("logprobs", -float("inf"), "no logarithm of a probability"),
        ("lengths", 0, "do not divide into the lengths"),
    ],
)
def test_numbers_that_cannot_be_are_refused(
    name: str, value: float, words: str, folder: Path
) -> None:
    with safe_open(folder / "step_00001.safetensors", "np") as file:
        array = file.get_tensor(name)
    array[0] = value
    rewritten(folder, lambda rows: None, **{name: array})
    with pytest.raises(UserError, match=f"cannot read step 1 .*{words}"):
        list(RecordedEngine(folder).sample(QUESTIONS, PARAMS))


def test_answers_of_later_turns_are_asked_for_by_their_prompts(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    own = [Question(id, f"{id}?", (1, 2)) for id in ("a", "a/1/0/0")]  # ids that look like turns
    groups = []
    for question in own:
        turns = [Turn(0, 0, 0, "writer"), Turn(0, 1, 0, "writer")]
        asked = [Question(f"{question.id}/1/{a}/0", f"{question.id} {a}", (3,)) for a in (0, 1)]
        turns += [Turn(1, a, 0, "critic", q, cut=a) for a, q in enumerate(asked)]
        said = [replace(_completion(rng, f"{question.id} {t}"), turn=t) for t in turns]
        groups.append(CompletionGroup(question, tuple(said), 0))
    run = RunFolder(tmp_path / "run")
    run.create(make_settings())
    run.keep_answers(1, groups)
    estimate = Estimate(majority_vote(["1"] * 4), (1.0,) * 4, "1", shaped_G=(1.0, 1.0, 1.5, 1.5))
    run.keep_estimates(1, groups, [estimate] * 2)
    engine = RecordedEngine(run.path / "rollouts")
    first = dict(engine.sample(own, replace(PARAMS, n=2)))
    assert first[1] == tuple(replace(c, turn=None) for c in groups[1].completions[:2])
    turn = replace(PARAMS, n=1, stream=(0, "rollout", 1, "turn", 1))
    later = [group.prompt_of(i) for group in groups for i in (3, 2)]
    found = [c for _, (c,) in engine.sample(later, turn)]
    expected = [group.completions[i] for group in groups for i in (3, 2)]
    assert found == [replace(c, turn=None) for c in expected]
    with pytest.raises(UserError, match="prompt of question 'a/1/0/0' in step 1 differs"):
        list(engine.sample([replace(later[1], prompt="other")], turn))
    with pytest.raises(UserError, match="has 2 answers to question 'a'; expected 3"):
        list(engine.sample(own, PARAMS))
    lines = run.path / "rollouts" / "step_00001.jsonl"
    lines.write_text(lines.read_text().replace('"prompt": "a 1"', '"prompt": "a 2"'))
    with pytest.raises(UserError, match="does not say what was sampled"):
        list(RecordedEngine(run.path / "rollouts").sample(own, turn))
