"""Labels that hold under a paraphrase: ``reward.labels = "harmony"``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from ttrl.answers import Extractor, Grader
from ttrl.data.free_prompts import Request, text_of, without_thinking
from ttrl.rewards.free_pass import AfterVoting, AskPolicy
from ttrl.rewards.vote import majority_vote, most_common
from ttrl.settings import Settings
from ttrl.settings.plugins import errors_as_user_error, is_plugin, load_plugin
from ttrl.types import Completion, CompletionGroup, FinishReason, Question, UserError, Vote

PARAPHRASE = (
    "Rewrite the following problem in other words. Keep every number and every condition, so that "
    "its answer stays the same. Do not solve it. Write the new problem and nothing else.\n\n"
)
"""What the policy is asked, before the question."""


class SelfHarmony(AfterVoting):
    """Self-Harmony (arXiv 2511.01191): the answer that question and paraphrase agree on.

    The policy says the question in other words, or ``harmony.paraphrase`` does, and answers that
    too, ``harmony.votes`` times. With p₀(a) and p₁(a), the shares of all answers to either that
    answer a has, abstentions included, the label is

        argmax_a 2 p₀(a) p₁(a) / (p₀(a) + p₁(a))

    of equal ones, the answer with the larger p₀, then the first of the vote over both. Where no
    answer was given to both, or there is no paraphrase (an empty one, one that was cut off), there
    is no label.

    The paper's policy is also trained to paraphrase; here it is trained on its answers to the
    question alone. Its code lets one completion paraphrase and solve; ours asks twice, so that who
    answers the paraphrase does not see the first wording.
    """

    def __init__(self, settings: Settings, extract: Extractor, grader: Grader) -> None:
        """Read ``[harmony]``.

        Raises:
            UserError: for a plug-in that cannot be loaded.
        """
        own = settings.harmony
        self.votes = own.votes or settings.rollout.votes
        self.answer_tokens, self.paraphrase_tokens = settings.rollout.max_new_tokens, own.tokens
        self.extract, self.grader = extract, grader
        self.name = own.paraphrase
        self.own: Callable[[str], object] | None = None
        if is_plugin(self.name):
            self.own = load_plugin(self.name, "harmony.paraphrase")
        elif self.name != "policy":
            raise UserError(
                f"harmony.paraphrase = {self.name!r}: expected policy, or FILE.py:FUNCTION"
            )

    def labels_from(
        self, voted: Sequence[tuple[CompletionGroup, Vote]], step: int, ask: AskPolicy
    ) -> Mapping[str, str | None]:
        """Return the labels; see `AfterVoting.labels_from`."""
        questions = [group.question for group, _ in voted]
        said = self._paraphrases(questions, ask)
        again = [Request(q, (text,)) for q, text in zip(questions, said, strict=True) if text]
        replies = ask(
            "paraphrased", again, n=self.votes, max_new_tokens=self.answer_tokens, answers=True
        )
        answered = {r.question.id: reply for r, reply in zip(again, replies, strict=True)}
        return {
            group.question.id: harmonic_label(
                vote.answers_G,
                [self.extract(c.text) for c in answered.get(group.question.id, ())],
                self.grader,
            )
            for group, vote in voted
        }

    def _paraphrases(self, questions: Sequence[Question], ask: AskPolicy) -> list[str]:
        """Say each question in other words; "" where that failed."""
        texts = [text_of(question) for question in questions]
        if self.own is not None:
            return [self._made(self.own, text) for text in texts]
        requests = [
            Request(q, (PARAPHRASE, text)) for q, text in zip(questions, texts, strict=True)
        ]
        replies = ask("paraphrase", requests, n=1, max_new_tokens=self.paraphrase_tokens)
        return ["".join(map(_whole, reply)) for reply in replies]

    def _made(self, own: Callable[[str], object], text: str) -> str:
        with errors_as_user_error(self.name, "harmony.paraphrase"):
            made = own(text)
        if not isinstance(made, str):
            raise UserError(f"harmony.paraphrase = {self.name!r} returned {made!r}: expected a str")
        return made


def harmonic_label(
    original: Sequence[str | None], paraphrased: Sequence[str | None], grader: Grader
) -> str | None:
    """Elect the answer with the largest harmonic mean of its shares; see `SelfHarmony`.

    Returns:
        The most common spelling among ``original``; None if no answer is in both.
    """
    both = majority_vote((*original, *paraphrased), grader)
    first = both.clusters_G[: len(original)]
    counts = [Counter(c) for c in (first, both.clusters_G[len(original) :])]
    shares = [
        (counts[0][c] / len(original), counts[1][c] / len(paraphrased) if paraphrased else 0.0)
        for c in range(len(both.counts))
    ]
    means = [2 * p * q / (p + q) for p, q in shares]
    if not any(means):
        return None
    best = max(range(len(means)), key=lambda c: (means[c], shares[c][0]))
    answers = zip(both.answers_G, first, strict=False)
    return most_common(Counter(a for a, c in answers if a is not None and c == best))


def _whole(reply: Completion) -> str:
    """Return a reply without what was thought before it; "" if it was cut off."""
    if reply.finish_reason is FinishReason.LENGTH:
        return ""
    return without_thinking(reply.text).strip()
