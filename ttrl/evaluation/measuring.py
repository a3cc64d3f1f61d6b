"""Measuring models on data sets, as ``ttrl eval`` does: sampled, recorded, or measured before."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from ttrl.answers import Grader, make_extractor
from ttrl.data.free_prompts import FreePrompts
from ttrl.data.questions import load_questions
from ttrl.evaluation.evaluation import Evaluation
from ttrl.models.pretrained import load_outline, load_tokenizer
from ttrl.models.saved_policies import saved_policies
from ttrl.report.display import Display
from ttrl.report.results import EvaluationResult, load_results
from ttrl.report.rollouts import RecordedAnswer, RecordedGroup, read_groups, recorded_line
from ttrl.report.run_record import is_run, read_run
from ttrl.rollout.ends import refuse_absent_ids
from ttrl.rollout.engines.recorded import RecordedEngine
from ttrl.rollout.pool import RolloutPool, closed_at_the_end, make_pool
from ttrl.rollout.workflows import conversation_of, make_workflow
from ttrl.rollout.workflows.checks import agents_of
from ttrl.settings import Settings
from ttrl.system.ranks import Ranks
from ttrl.types import Completion, UserError


def measured_before(path: Path, data: Sequence[str]) -> list[EvaluationResult]:
    """Load results of these data sets, in their order.

    Raises:
        UserError: if one is not there.
    """
    found = {result.data: result for result in load_results(path)}
    if missing := [name for name in data if name not in found]:
        raise UserError(
            f"{path} has no result of {', '.join(missing)}: it has {', '.join(found) or 'none'}"
        )
    return [found[name] for name in data]


def load_evaluation(settings: Settings, grader: Grader, display: Display) -> Evaluation:
    """Load the questions of ``data.train``, to measure ``model.path`` on.

    Raises:
        UserError: if they cannot be used, or none has an answer.
    """
    data, tokenizer = settings.data.train, load_tokenizer(settings.model)
    own = settings.data.as_held_out() if data == settings.data.held_out else settings.data
    asked = load_questions(data, own, tokenizer)
    display.rejected(asked.rejected)
    for remark in asked.remarks:
        display.note(remark)
    if not asked.key.answers:
        raise UserError(
            f"{data}: no row has an answer (data.answer_field = {own.answer_field!r}): "
            "there is nothing to measure against. Add it to its lines, or name its field: --set "
            "data.answer_field=NAME"
        )
    refuse_absent_ids(asked.questions, load_outline(settings.model), tokenizer)
    extract = make_extractor(settings.answers.extract)
    conversation = conversation_of(make_workflow(settings))
    if conversation is not None:
        conversation.begin(FreePrompts.of(settings, tokenizer))
        for question in asked.questions:
            conversation.check(question)
    return Evaluation(settings, extract, grader, data, asked, (1,), conversation)


@contextmanager
def open_pool(settings: Settings, ranks: Ranks) -> Iterator[RolloutPool]:
    """Load the engine of one model for all its data sets; all ranks together.

    Raises:
        UserError: if ranks that share an engine would be left over, or it cannot be loaded.
    """
    if ranks.count > 1 and ranks.count % settings.rollout.tensor_parallel:
        raise UserError(
            f"--ranks {ranks.count}: expected a multiple of rollout.tensor_parallel = "
            f"{settings.rollout.tensor_parallel}, the ranks that share an engine"
        )
    agents = agents_of(conversation_of(make_workflow(settings)), settings)
    policies = saved_policies(settings.model, len(agents)) if agents else ()
    pool = make_pool(settings, load_tokenizer(settings.model), ranks)
    pool.policies = policies
    with closed_at_the_end(pool, ranks):
        yield pool


def save_samples(
    path: Path, evaluations: Sequence[Evaluation], sampled: Sequence[Sequence[RecordedGroup]]
) -> None:
    """Write all answers to a file that `read_samples` reads, one line per question."""
    lines = [
        recorded_line(replace(group, data=evaluation.name))
        for evaluation, groups in zip(evaluations, sampled, strict=True)
        for group in groups
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def read_samples(
    path: Path, evaluation: Evaluation, display: Display, *, of_tokens: bool = False
) -> list[RecordedGroup]:
    """Read the answers to an evaluation's questions from a file, or a run's newest ones.

    Args:
        path: a file of `save_samples` or of a run's ``rollouts/``; or a run's folder, of which
            each question's last answers count.
        evaluation: whose questions they answer.
        display: says which questions have no answers there; they are left out.
        of_tokens: also read of a run what was known of each token, from beside its answers; a file
            of `save_samples` says it, if it was noted.

    Raises:
        UserError: if it cannot be read, has other prompts, or no answer to any of the questions.
    """
    if is_run(path):
        run = read_run(path)
        steps = {step: run.groups(step) for step in run.sampled}
        if of_tokens and steps:
            steps = with_tokens(path, steps)
        groups = [group for groups in steps.values() for group in groups]
    else:
        groups = read_groups(path)
        _refuse_twice(path, groups)
    found, asked = answers_to(groups, evaluation, f"--from-samples {path}"), evaluation.answerable
    if not found:
        raise UserError(
            f"--from-samples {path}: no answers to the questions of {evaluation.name}; it has "
            f"those of {len(groups)} others"
        )
    if len(found) < len(asked):
        display.note(
            f"{path} has no answers to {len(asked) - len(found)} of the {len(asked)} questions of "
            f"{evaluation.name}: they are left out"
        )
    _refuse_unlike(path, found)
    return found


def answers_to(
    groups: Sequence[RecordedGroup], evaluation: Evaluation, source: str
) -> list[RecordedGroup]:
    """Pick the answers to an evaluation's questions, in the order of these.

    Args:
        groups: recorded answers, to other questions too.
        evaluation: whose questions are meant.
        source: names the answers in a message: the option, and where they are.

    Raises:
        UserError: if one of the questions had another prompt.
    """
    recorded = {g.question: g for g in groups if g.data in (None, evaluation.name)}
    asked = [question for question in evaluation.answerable if question.id in recorded]
    for question in asked:
        if (prompt := recorded[question.id].prompt) != question.prompt:
            raise UserError(
                f"{source}: question {question.id!r} had another prompt, {prompt[:60]!r} and not "
                f"{question.prompt[:60]!r}: name the same data, and with --recipe the settings "
                "that it was sampled with"
            )
    return [recorded[question.id] for question in asked]


def _refuse_twice(path: Path, groups: Sequence[RecordedGroup]) -> None:
    """Raise a UserError for a file that answers a question twice: which line counts?"""
    seen: set[tuple[str | None, str]] = set()
    for number, group in enumerate(groups, start=1):
        if (group.data, group.question) in seen:
            raise UserError(
                f"--from-samples {path}, line {number}: question {group.question!r} is there "
                "twice; expected one line for each question. Take one of them out, or name the "
                "run's folder, of which each question's last answers count"
            )
        seen.add((group.data, group.question))


def _refuse_unlike(path: Path, groups: Sequence[RecordedGroup]) -> None:
    """Raise a UserError unless every question has answers, and of the same kinds."""
    if empty := [g.question for g in groups if not g.alone]:
        raise UserError(
            f"--from-samples {path}: nobody has answered question {empty[0]!r} by itself; expected "
            "one answer at least. Take its line out"
        )
    for kind, has in (
        ("a greedy answer", [g.greedy is not None for g in groups]),
        ("answers of agents in turns", [any(a.turn for a in g.answers) for g in groups]),
    ):
        if len(set(has)) > 1:
            one, other = groups[has.index(True)].question, groups[has.index(False)].question
            raise UserError(
                f"--from-samples {path}: question {one!r} has {kind}, and {other!r} has not; "
                "expected it of all questions, or of none: sample them together, or take what is "
                "too much out of the file"
            )


def with_tokens(
    run: Path, steps: Mapping[int, Sequence[RecordedGroup]]
) -> dict[int, list[RecordedGroup]]:
    """Add to the answers of a run's steps what was known of their tokens.

    Raises:
        UserError: if the tokens of a step cannot be read, or are those of other answers.
    """
    try:
        record = RecordedEngine(run / "rollouts")
        return {
            step: [_with_tokens(g, recorded[g.question].votes) for g in groups]
            for step, groups in steps.items()
            for recorded in [record.answers(step)]
        }
    except UserError as error:
        said = str(error).replace("--replay", "--from-samples", 1)
        raise UserError(f"the rules of --select need the tokens of {run}: {said}") from error


def _with_tokens(group: RecordedGroup, votes: Sequence[Completion]) -> RecordedGroup:
    told = zip(group.answers, map(RecordedAnswer.of, votes), strict=True)
    answers = [replace(a, surprisal=t.surprisal, confidence=t.confidence) for a, t in told]
    return replace(group, answers=tuple(answers))
