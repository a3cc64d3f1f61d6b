"""Dynamic sampling: a question whose answers teach nothing gives its place to a further one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from ttrl.types import CompletionGroup, Estimate, Question, TrainSample


@dataclass(slots=True)
class Rollout:
    """All that a step has sampled, what it is worth, and which groups are trained on."""

    groups: list[CompletionGroup] = field(default_factory=list)
    """The groups in the order in which they were asked for: the step's own, then further ones."""
    estimates: list[Estimate] = field(default_factory=list)
    """What they are worth, one per group."""
    batch: list[int] = field(default_factory=list)
    """Indices of the groups that are trained on: for each of the step's own questions, itself or
    the one that has taken its place."""
    free_pass_s: float = 0.0
    """Seconds in which the label source has asked the policy."""
    beside: list[TrainSample] = field(default_factory=list)
    """Samples that are trained on beside the groups': of questions that the policy has posed."""
    figures: dict[str, float] = field(default_factory=dict)
    """Figures of these."""

    def add(
        self,
        groups: Sequence[CompletionGroup],
        estimates: Sequence[Estimate],
        *,
        further: bool = False,
    ) -> None:
        """Add groups to the batch; ``further`` ones that teach something take places of `open`."""
        added = range(len(self.groups), len(self.groups) + len(groups))
        self.groups += groups
        self.estimates += estimates
        if not further:
            self.batch += added
            return
        useful = [i for i in added if has_signal(self.estimates[i], self.groups[i].parts)]
        for place, i in zip(self.open, useful, strict=False):
            self.batch[place] = i

    def drop_first(self, count: int) -> list[CompletionGroup]:
        """Take the first groups out, of a rollout all of whose groups are in the batch."""
        dropped = self.groups[:count]
        del self.groups[:count], self.estimates[:count]
        self.batch = list(range(len(self.groups)))
        return dropped

    @property
    def open(self) -> list[int]:
        """The places of the batch whose answers teach nothing."""
        signals = [has_signal(self.estimates[i], self.groups[i].parts) for i in self.batch]
        return [place for place, signal in enumerate(signals) if not signal]

    def chosen(self, trained: Sequence[list[int]]) -> list[list[int]]:
        """Spread what is said of the batch over all groups: of the others, nothing is trained."""
        of_group = dict(zip(self.batch, trained, strict=True))
        return [of_group.get(i, []) for i in range(len(self.groups))]

    def trained(self, samples: Sequence[TrainSample]) -> list[TrainSample]:
        """Put those `beside` among ``samples`` evenly: each optimizer step has its part of them."""
        placed = [
            ((i + 0.5) / len(part), sample)
            for part in (samples, self.beside)
            for i, sample in enumerate(part)
        ]
        return [sample for _, sample in sorted(placed, key=lambda pair: pair[0])]

    def metrics(self) -> dict[str, float]:
        """Return how many questions were asked, replaced, and not replaced for want of others."""
        replaced = sum(i >= len(self.batch) for i in self.batch)
        return {
            "rollout/questions": float(len(self.groups)),
            "rollout/replaced": float(replaced),
            "rollout/unfilled": float(len(self.open)),
        }


def has_signal(estimate: Estimate, parts: Sequence[Sequence[int]] | None = None) -> bool:
    """Say whether some answer of a group is worth more than another (DAPO, arXiv 2503.14476).

    The vote says so without a label: where all agree, or nobody answers, `majority` pays all
    answers alike, and there is nothing to compare. An estimator's own advantages say it themselves,
    of what they keep; a weight of 0 says that there is nothing.

    Args:
        estimate: what the group's answers are worth.
        parts: `CompletionGroup.parts`, the answers that are compared; None: all with all.
    """
    if estimate.weight == 0:
        return False
    if estimate.advantages_G is None:
        worth_G = estimate.worth_G
        return any(len({worth_G[i] for i in p}) > 1 for p in parts or [range(len(worth_G))])
    keep_G = estimate.keep_G or (True,) * len(estimate.advantages_G)
    return any(a != 0 for a, keep in zip(estimate.advantages_G, keep_G, strict=True) if keep)


def rounds_of(
    own: Sequence[Question],
    further: Callable[[int, int], Sequence[Question]],
    rollout: Rollout,
    rounds: int,
) -> Iterator[Sequence[Question]]:
    """Yield what a step asks, round by round, while its batch has places to fill.

    What is asked depends on what ``rollout`` holds, which is the same on all ranks, and on nothing
    else, so that all of them go the same rounds, and a run that goes on from a checkpoint too.

    Args:
        own: the step's questions, which are the first round.
        further: `QuestionSource.further` of the step.
        rollout: what has been answered so far; whoever asks a round adds to it.
        rounds: further rounds, at most. What is then without signal is trained on as it is.
    """
    yield own
    for _ in range(rounds):
        asked = further(len(rollout.groups) - len(own), len(rollout.open))
        if not asked:
            return
        yield asked
