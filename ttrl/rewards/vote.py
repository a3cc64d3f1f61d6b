"""The majority vote, which stands in for the missing answer key (arXiv 2504.16084, section 2)."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence

from ttrl.answers import Grader, default_grader, tie_order
from ttrl.types import Vote


def majority_vote(
    answers: Sequence[str | None],
    grader: Grader | None = None,
    voters_G: Sequence[bool] | None = None,
) -> Vote:
    """Elect the most frequent answer, where equivalent answers count as one.

    Every rule is independent of the order of the answers:

    - None, or an answer without content, abstains. If everybody abstains, nothing is elected.
    - Among classes with equally many votes, the one with the smallest `tie_order` wins; `tied`
      says that it happened.
    - The label is a voter's own answer: the winning class's most common spelling; among equally
      common ones, the smallest by `tie_order`.

    Args:
        answers: one per completion, as `ttrl.answers.extract_answer` gives them.
        grader: says which answers are equivalent; None: one with the default settings.
        voters_G: who votes, one at least; None: all. The others elect nothing, and are in the
            classes of the voters whose answers they give, or in none.
    """
    grader = grader or default_grader()
    votes_G = (True,) * len(answers) if voters_G is None else tuple(voters_G)
    found = grader.classes({answer for answer in answers if answer is not None})
    forms = found.name_of
    answers_G = tuple(a if a is not None and forms[a] else None for a in answers)
    spellings: dict[str, Counter[str]] = defaultdict(Counter)  # by canonical form
    for answer, votes in zip(answers_G, votes_G, strict=True):
        if votes and answer is not None:
            spellings[forms[answer]][answer] += 1
    classes = sorted(spellings, key=lambda form: (-spellings[form].total(), tie_order(form)))
    cluster_of = {form: cluster for cluster, form in enumerate(classes)}
    counts = tuple(spellings[form].total() for form in classes)
    said = [a for a, votes in zip(answers_G, votes_G, strict=True) if votes]
    return Vote(
        answers_G=answers_G,
        clusters_G=tuple(None if a is None else cluster_of.get(forms[a]) for a in answers_G),
        counts=counts,
        names=tuple(classes),
        majority=most_common(spellings[classes[0]]) if classes else None,
        majority_ratio=counts[0] / len(said) if counts else 0.0,
        margin=(counts[0] - sum(counts[1:2])) / len(said) if counts else 0.0,
        abstained=said.count(None),
        tied=len(counts) > 1 and counts[0] == counts[1],
        undecided=sum(a in found.undecided for a in said if a is not None),
        voters_G=None if all(votes_G) else votes_G,
    )


def answer_entropy(vote: Vote) -> float:
    """Compute the entropy of the voters' answers in nats; 0 without voters."""
    voters = sum(vote.counts)
    return math.fsum(n / voters * math.log(voters / n) for n in vote.counts)


def most_common(spellings: Counter[str]) -> str:
    """Return the most common spelling; of equally common ones, the smallest by `tie_order`."""
    return min(spellings, key=lambda spelling: (-spellings[spelling], tie_order(spelling)))


def same_label(a: str | None, b: str | None, grader: Grader) -> bool:
    """Say whether two labels are equivalent; no label is equivalent to none only."""
    return a == b if a is None or b is None else grader.equivalent(a, b)


def is_settled(counts: Sequence[int], remaining: int) -> bool:
    """Say whether further votes cannot change who wins, not even by a tie.

    Args:
        counts: votes per class so far, in any order.
        remaining: the number of votes to come.
    """
    first, second = (*sorted(counts, reverse=True), 0, 0)[:2]
    return first - second > remaining
