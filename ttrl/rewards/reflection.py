"""Labels that the policy picks from its own solutions: ``reward.labels = "reflection"``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ttrl.answers import Extractor, Grader
from ttrl.data.free_prompts import Excerpt, Request, text_of, without_thinking
from ttrl.rewards.estimators.readings import spelling, surprisal
from ttrl.rewards.free_pass import AfterVoting, AskPolicy
from ttrl.settings import Settings
from ttrl.system.rng import generator
from ttrl.types import Completion, CompletionGroup, Question, Vote

SUMMARIZE = (
    "\n\nHere is a solution. Sum up its reasoning in a few sentences, with every step that its "
    "answer depends on. Do not judge it.\n\n"
)
"""What the policy is asked about one solution, between the question and the solution."""
COMPARE = "\n\nHere are solutions that end in different answers. At most one of them is right.\n\n"
"""What stands between the question and the solutions."""
PICK = (
    "Check their steps against each other, and decide which solution is the most plausible one. "
    "Give its answer, exactly as it stands there, as the final answer.\n"
)
"""What stands behind the solutions."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """An answer that may be picked, and the solution that speaks for it."""

    question: Question
    answer: str
    """Its most common spelling."""
    solution: str
    """The text of the solution, or its summary."""


class SelfReflection(AfterVoting):
    """SR-TTRL (ICML 2026, poster 62036): the policy reads one solution per answer, and picks.

    Of each answer, of at most ``reflection.candidates``, one solution stands in the pool, summed up
    by the policy. It reads the question and the pool, and its answer is the label, if it is one of
    the pool's. Any other reply, or none, is no label: the answers earn nothing, and
    ``free_pass/unlabelled_share`` counts it. Where all voters agree there is nothing to pick, and
    nothing is asked.

    The paper's abstract gives these steps; the rest is ours. The solution is the one with the
    smallest mean surprisal of its tokens. The pool is shuffled, so that popularity is not seen. One
    reply decides. A solution whose summary is empty, or had no room, is itself read.
    """

    def __init__(self, settings: Settings, extract: Extractor, grader: Grader) -> None:
        """Read ``[reflection]``."""
        self.settings, self.seed = settings.reflection, settings.seed
        self.extract, self.grader = extract, grader

    def labels_from(
        self, voted: Sequence[tuple[CompletionGroup, Vote]], step: int, ask: AskPolicy
    ) -> Mapping[str, str | None]:
        """Return the labels; see `AfterVoting.labels_from`."""
        pools = [self._pool(group, vote, step) for group, vote in voted]
        contested = [pool for pool in pools if len(pool) > 1]
        if self.settings.summary_tokens:
            contested = self._summed_up(contested, ask)
        requests = [
            Request(pool[0].question, (text_of(pool[0].question), COMPARE, *_shown(pool), PICK))
            for pool in contested
        ]
        tokens = self.settings.tokens
        replies = ask("reflection", requests, n=1, max_new_tokens=tokens, answers=True)
        picked = {
            pool[0].question.id: self._picked(pool, reply)
            for pool, reply in zip(contested, replies, strict=True)
        }
        return {
            group.question.id: picked.get(group.question.id, vote.majority) for group, vote in voted
        }

    def _pool(self, group: CompletionGroup, vote: Vote, step: int) -> list[Candidate]:
        """Return the candidates of a question, in random order."""
        best: dict[int, Completion] = {}
        for completion, cluster in zip(group.completions, vote.clusters_G, strict=True):
            if cluster is not None and cluster < self.settings.candidates:
                held = best.setdefault(cluster, completion)
                best[cluster] = min(held, completion, key=surprisal)
        order = generator(self.seed, "pool", step, group.question.id).permutation(len(best))
        return [
            Candidate(group.question, spelling(vote, cluster), best[cluster].text)
            for cluster in order.tolist()
        ]

    def _summed_up(
        self, pools: Sequence[Sequence[Candidate]], ask: AskPolicy
    ) -> list[list[Candidate]]:
        """Put summaries in the place of the solutions."""
        requests = [
            Request(c.question, (text_of(c.question), SUMMARIZE, Excerpt(c.solution)))
            for pool in pools
            for c in pool
        ]
        tokens = self.settings.summary_tokens
        replies = iter(ask("summary", requests, n=1, max_new_tokens=tokens))
        return [
            [Candidate(c.question, c.answer, _text(next(replies)) or c.solution) for c in pool]
            for pool in pools
        ]

    def _picked(self, pool: Sequence[Candidate], reply: Sequence[Completion]) -> str | None:
        """Return the candidate's answer that the reply ends with."""
        pick = self.extract(_text(reply))
        if pick is None:
            return None
        answers = [candidate.answer for candidate in pool]
        agree = self.grader.agree(answers, pick)
        return next((a for a, agrees in zip(answers, agree, strict=True) if agrees), None)


def _shown(pool: Sequence[Candidate]) -> Iterator[str | Excerpt]:
    """Yield the parts of a message that show the candidates."""
    for number, candidate in enumerate(pool, start=1):
        yield f"Solution {number}:\n"
        yield Excerpt(f"{candidate.solution}\nIts answer: {candidate.answer}")
        yield "\n\n"


def _text(reply: Sequence[Completion]) -> str:
    """Return a reply's text without what was thought before it; "" if there was none."""
    return "".join(without_thinking(completion.text).strip() for completion in reply)
