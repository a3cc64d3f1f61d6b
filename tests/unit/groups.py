"""Groups of completions, their votes and their estimates, made by hand."""

from __future__ import annotations

from collections.abc import Sequence

from ttrl.answers import equivalent, extract_answer
from ttrl.rewards import majority_vote, make_estimator
from ttrl.types import (
    Completion,
    CompletionGroup,
    Estimate,
    FinishReason,
    PastVote,
    Question,
    VotedGroup,
)
from ttrl.types.top_logprobs import TopLogprobs


def completion(
    text: str, tokens: int = 3, *, truncated: bool = False, surprisal: float = 0.5
) -> Completion:
    finish_reason = FinishReason.LENGTH if truncated else FinishReason.STOP
    top = TopLogprobs.of([((0, 1), (-surprisal, -surprisal - 1))] * tokens)
    logprobs = (-surprisal,) * tokens
    return Completion(tuple(range(tokens)), logprobs, text, finish_reason, top_logprobs=top)


def boxed(answer: str | None) -> str:
    return "I give up." if answer is None else f"So it is $\\boxed{{{answer}}}$."


def group(
    *answers: str | None, id: str = "q1", surprisals: Sequence[float] | None = None
) -> CompletionGroup:
    """One completion per answer; the i-th is i + 1 tokens long, all of the i-th surprisal."""
    surprisals = surprisals or [0.5] * len(answers)
    completions = tuple(
        completion(boxed(a), tokens=i + 1, surprisal=s)
        for i, (a, s) in enumerate(zip(answers, surprisals, strict=True))
    )
    return CompletionGroup(Question(id, "What is 3 + 4?", (7, 8, 9)), completions, 0)


def voted(of: CompletionGroup, history: tuple[PastVote, ...] = (), step: int = 1) -> VotedGroup:
    """The group, voted on, with its own majority as the label."""
    vote = majority_vote([extract_answer(c.text) for c in of.completions])
    return VotedGroup(
        group=of,
        vote=vote,
        label=vote.majority,
        agrees_G=tuple(cluster == 0 for cluster in vote.clusters_G),
        history=history,
        stream=(0, "reward", step, of.question.id),
    )


def labelled_ballot(of: CompletionGroup, label: str | None) -> VotedGroup:
    """The group, voted on, with a label from elsewhere."""
    own = voted(of)
    return VotedGroup(
        group=of,
        vote=own.vote,
        label=label,
        agrees_G=tuple(
            answer is not None and label is not None and equivalent(answer, label)
            for answer in own.vote.answers_G
        ),
        stream=own.stream,
    )


def estimate(of: CompletionGroup, name: str = "majority", **options: object) -> Estimate:
    """What an estimator makes of a group whose voters' majority is the label."""
    return make_estimator(name, options).estimate(voted(of))
