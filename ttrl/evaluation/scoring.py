"""Scores of answers, just sampled or recorded, against an answer key."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import fmean

from ttrl.answers import Extractor, Grader
from ttrl.evaluation.metrics import maj_at_k, pass_at_k
from ttrl.evaluation.outcomes import outcomes
from ttrl.report.results import QuestionScores, Scores
from ttrl.report.rollouts import RecordedGroup
from ttrl.rewards.verdicts import are_right, verdicts_of
from ttrl.settings import Settings
from ttrl.types import AnswerKey, UserError


def score_groups(
    groups: Iterable[RecordedGroup],
    key: AnswerKey,
    ks: Iterable[int],
    extract: Extractor,
    grader: Grader,
    settings: Settings | None = None,
) -> tuple[QuestionScores, ...]:
    """Score the answers to each question.

    Args:
        groups: each to a question that the key has an answer to.
        key: the reference answers.
        ks: report pass@k and maj@k for these.
        extract: from a completion's text to its answer.
        grader: says which answers are equivalent.
        settings: say which answers in turns are verdicts; None: none is.

    Returns:
        Per question, fractions of 1, unbiased estimates from its n answers: "pass@k" (Chen et
        al., arXiv 2107.03374; pass@1 is the mean accuracy), "maj@k" for k > 1, "greedy" where that
        answer is there, "outcome" (`ttrl.evaluation.outcomes`) where agents have answered in turns,
        which count in nothing else, but for "verdict", the share of right ones; "abstention_share",
        "truncated_share", the mean number of "response_tokens".

    Raises:
        UserError: if a question has fewer answers than the largest k.
    """
    ks = sorted(set(ks))
    return tuple(
        QuestionScores(
            g.question,
            _score(g, key.answers[g.question], ks, extract, grader)
            | _verdict_score(g, key.answers[g.question], extract, grader, settings),
            key.levels.get(g.question),
        )
        for g in groups
    )


def _score(
    group: RecordedGroup, reference: str, ks: Sequence[int], extract: Extractor, grader: Grader
) -> Scores:
    alone = group.alone
    n = len(alone)
    if n < ks[-1]:
        raise UserError(
            f"question {group.question!r} has {n} answers, too few for pass@{ks[-1]}: expected at "
            f"least as many; lower --k to {n}"
        )
    answers = [extract(a.text) for a in alone]
    correct = sum(grader.agree(answers, reference))
    scores = {f"pass@{k}": pass_at_k(n, correct, k) for k in ks}
    scores |= {f"maj@{k}": maj_at_k(answers, reference, k, grader) for k in ks if k > 1}
    if group.greedy is not None:
        (right,) = grader.agree([extract(group.greedy.text)], reference)
        scores["greedy"] = float(right)
    if ends := outcomes(
        [extract(a.text) for a in group.answers], [a.turn for a in group.answers], grader
    ):
        scores["outcome"] = fmean(grader.agree(ends, reference))
    return scores | {
        "abstention_share": answers.count(None) / n,
        "truncated_share": fmean(a.truncated for a in alone),
        "response_tokens": fmean(a.tokens for a in alone),
    }


def _verdict_score(
    group: RecordedGroup,
    reference: str,
    extract: Extractor,
    grader: Grader,
    settings: Settings | None,
) -> Scores:
    """Compute the share of verdicts that are right about their solutions; {} without any."""
    verdicts = {} if settings is None else verdicts_of(group.answers, extract, settings)
    if not verdicts:
        return {}
    right_G = grader.agree([extract(answer.text) for answer in group.answers], reference)
    return {"verdict": fmean(are_right(verdicts, right_G).values())}
