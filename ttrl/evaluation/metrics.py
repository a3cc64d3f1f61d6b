"""What a step's votes say about training: without labels, and against an answer key.

The names follow the paper's (arXiv 2504.16084, sections 3 and 4). All rates are fractions of 1
and all figures are means over questions, unless they say otherwise.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean

from ttrl.answers import Grader, default_grader, tie_order
from ttrl.evaluation.outcomes import outcome_metrics, read_tokens, turn_metrics
from ttrl.rewards.extra import shown
from ttrl.rewards.verdicts import are_right
from ttrl.rewards.vote import answer_entropy, majority_vote
from ttrl.types import (
    AnswerKey,
    CompletionGroup,
    Estimate,
    FinishReason,
    PastVote,
    UpdateResult,
    Vote,
)

Metrics = dict[str, float]


# ---------------------------------------------------------------------------------------------
# Without labels


def vote_metrics(
    groups: Sequence[CompletionGroup],
    estimates: Sequence[Estimate],
    history: Mapping[str, Sequence[PastVote]],
    trained: Sequence[Sequence[int]],
) -> Metrics:
    """Compute figures of one step that need no reference answer.

    Args:
        groups: the step's groups.
        estimates: one per group, in the same order.
        history: question id -> its visits, of which this step's is the last; ``vote/flip_rate`` is
            the share of questions whose label has changed since the one before, and is absent if
            none of the step's questions was asked before.
        trained: per group, the indices of the completions that are trained on (`choose`).
    """
    rows = []
    for group, estimate, indices in zip(groups, estimates, trained, strict=True):
        row = _vote_figures(estimate.vote)
        row["reward/majority_reward"] = fmean(estimate.rewards_G)
        if estimate.greedy_reward is not None:
            row["reward/greedy_reward"] = estimate.greedy_reward
        for name, rewards_G in estimate.extra_rewards.items():
            row[f"reward/extra/{shown(name)}"] = fmean(rewards_G)
        row["estimator/confidence"] = estimate.confidence
        if indices:
            row["trained/majority_reward"] = fmean(estimate.rewards_G[i] for i in indices)
        *earlier, now = history[group.question.id]
        if earlier:
            row["vote/flip_rate"] = float(now.changed)
        completions = group.completions
        row["rollout/response_tokens_mean"] = fmean(len(c.token_ids) for c in completions)
        row["rollout/truncated_share"] = fmean(
            c.finish_reason is FinishReason.LENGTH for c in completions
        )
        row |= {f"estimator/{name}": value for name, value in estimate.metrics.items()}
        row |= turn_metrics(group, estimate)
        rows.append(row)
    tokens = sum(len(c.token_ids) for group in groups for c in group.completions)
    read = sum(read_tokens(group.completions) for group in groups)
    of_agents = {"agents/read_tokens": float(read)} if read else {}
    return {**_means(rows), **of_agents, "rollout/tokens": float(tokens)}


def _vote_figures(vote: Vote) -> Metrics:
    return {
        "vote/majority_ratio": vote.majority_ratio,
        "vote/margin": vote.margin,
        "vote/tie_share": float(vote.tied),
        "vote/abstention_share": vote.abstained / vote.votes,
        "vote/undecided_share": vote.undecided / vote.votes,
        "vote/distinct_answers": float(len(vote.counts)),
        "vote/entropy": answer_entropy(vote),
    }


# ---------------------------------------------------------------------------------------------
# Against an answer key


def labelled_metrics(
    groups: Sequence[CompletionGroup],
    estimates: Sequence[Estimate],
    key: AnswerKey,
    grader: Grader,
    trained: Sequence[Sequence[int]],
) -> Metrics:
    """Compute a step's figures over questions that have a reference answer; {} if none has.

    ``label/label_accuracy``: the label is right, or how many are, where completions have their own.
    Over all votes as ``label/...``, and over the trained completions alone as ``trained/...``:

    - ``reward_accuracy``: completions that are paid if and only if they are right;
    - ``ground_truth_reward``: completions that are right;
    - ``pass@n``: one of the n answers among them is right.

    A verdict on a solution (`Estimate.verdicts`) is right or wrong as such, is none of the n, and
    also counts in ``label/verdict_accuracy``.

    Each appears again per difficulty level, as ``label/label_accuracy/level=3``.
    """
    rows = []
    for group, estimate, indices in zip(groups, estimates, trained, strict=True):
        reference = key.answers.get(group.question.id)
        if reference is None:
            continue
        answers_G, labels = estimate.vote.answers_G, estimate.labels_G or (estimate.label,)
        agree = grader.agree((*answers_G, *labels), reference)
        right_G, right_labels = list(agree[: len(answers_G)]), agree[len(answers_G) :]
        judged = are_right(estimate.verdicts, right_G)
        for i, right in judged.items():
            right_G[i] = right
        row = {
            "label/label_accuracy": fmean(right_labels),
            **_reward_figures("label", estimate, range(len(right_G)), right_G),
            **_reward_figures("trained", estimate, indices, right_G),
            **outcome_metrics(group, estimate, reference, grader),
        }
        if judged:
            row["label/verdict_accuracy"] = fmean(judged.values())
        rows.append(row)
        if level := key.levels.get(group.question.id):
            rows.append({f"{name}/level={level}": value for name, value in row.items()})
    return _means(rows)


def _reward_figures(
    prefix: str, estimate: Estimate, indices: Sequence[int], right_G: Sequence[bool]
) -> Metrics:
    if not indices:
        return {}
    right = [right_G[i] for i in indices]
    paid = [estimate.rewards_G[i] > 0 for i in indices]
    found = {
        f"{prefix}/reward_accuracy": fmean(r == p for r, p in zip(right, paid, strict=True)),
        f"{prefix}/ground_truth_reward": fmean(right),
    }
    if answers := [right_G[i] for i in indices if i not in estimate.verdicts]:
        n = len(answers)
        found[f"{prefix}/pass@{n}"] = pass_at_k(n, sum(answers), n)
    return found


def _means(rows: Iterable[Metrics]) -> Metrics:
    """Return per name the mean over the rows that have it."""
    values: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        for name, value in row.items():
            values[name].append(value)
    return {name: fmean(column) for name, column in values.items()}


# ---------------------------------------------------------------------------------------------
# pass@k and maj@k


def pass_at_k(n: int, c: int, k: int) -> float:
    """Compute the probability that k of n answers, drawn without replacement, hold a right one.

    The unbiased estimator 1 - C(n - c, k) / C(n, k) of pass@k (arXiv 2107.03374), where c of the n
    are right, in exact integers up to the last division.

    Raises:
        ValueError: unless 0 <= c <= n and 1 <= k <= n.
    """
    if not (0 <= c <= n and 1 <= k <= n):
        raise ValueError(f"pass@{k} of {n} answers, {c} right: expected 0 <= c <= n, 1 <= k <= n")
    every = math.comb(n, k)
    return (every - math.comb(n - c, k)) / every


def maj_at_k(
    answers: Sequence[str | None], reference: str, k: int, grader: Grader | None = None
) -> float:
    """Compute the probability that k answers, drawn without replacement, elect the reference.

    Exact, by counting the draws that `majority_vote` would decide so, with its rule for ties; so
    it needs no random numbers, and is an unbiased estimate of maj@k. 0 or 1 if k is all of them.

    Raises:
        ValueError: unless 1 <= k <= number of answers.
    """
    if not 1 <= k <= len(answers):
        raise ValueError(f"maj@{k} of {len(answers)} answers: expected 1 <= k <= that number")
    grader = grader or default_grader()
    vote = majority_vote(answers, grader)
    right_G = grader.agree(vote.answers_G, reference)
    target = next((c for c, right in zip(vote.clusters_G, right_G, strict=True) if right), None)
    if target is None:
        return 0.0
    order = [tie_order(name) for name in vote.names]
    draws = 0
    for won in range(1, min(vote.counts[target], k) + 1):  # draws where the reference gets `won`
        ways = [1] + [0] * (k - won)
        ways = _draw(ways, vote.abstained, vote.abstained)
        for cluster, count in enumerate(vote.counts):
            if cluster != target:
                ways = _draw(ways, count, won if order[target] < order[cluster] else won - 1)
        draws += math.comb(vote.counts[target], won) * ways[-1]
    return draws / math.comb(len(answers), k)


def _draw(ways: Sequence[int], available: int, at_most: int) -> list[int]:
    """Count the ways to draw with one more cluster: up to ``at_most`` of its ``available`` answers.

    ``ways[j]`` is in how many ways j answers are drawn, before and after.
    """
    choices = [math.comb(available, i) for i in range(min(available, at_most) + 1)]
    return [
        sum(ways[j - i] * choices[i] for i in range(min(j + 1, len(choices))))
        for j in range(len(ways))
    ]


# ---------------------------------------------------------------------------------------------
# Of the update and the evaluations


def update_metrics(updates: Sequence[UpdateResult], model: str = "policy") -> dict[str, float]:
    """Return the figures of a step's optimizer steps of a model, as ``MODEL/...``.

    They are means, but sums of counts, and the largest of what is the largest already. None were
    taken where unanimous votes left nothing to learn: then only the count 0 is there.
    """
    metrics: dict[str, float] = {f"{model}/updates": len(updates)}
    if not updates:
        return metrics
    for name in ("loss", "grad_norm", "learning_rate"):
        metrics[f"{model}/{name}"] = fmean(getattr(update, name) for update in updates)
    for name in ("tokens", "sequences", "skipped_sequences"):
        metrics[f"{model}/{name}"] = sum(getattr(update, name) for update in updates)
    first = updates[0]
    for name in first.means:
        metrics[f"{model}/{name}"] = fmean(update.means[name] for update in updates)
    for name in first.largest:
        metrics[f"{model}/{name}"] = max(update.largest[name] for update in updates)
    return metrics


def mismatch_metrics(*updates: Sequence[UpdateResult]) -> dict[str, float]:
    """Return the first update's distance from the sampler, before anything has moved.

    An objective that does not measure it has none. Of several policies it is that of the one which
    is furthest from it.
    """
    firsts = [own[0] for own in updates if own and "sampler_kl" in own[0].means]
    if not firsts:
        return {}
    first = max(firsts, key=lambda update: update.means["sampler_kl"])
    return {
        "mismatch/kl": first.means["sampler_kl"],
        "mismatch/mean_log_ratio": first.means["sampler_log_ratio"],
        "mismatch/max_log_ratio": first.largest["sampler_max_gap"],
    }


def evaluation_metrics(results: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Return the scores of the evaluations as ``eval/NAME/...``."""
    return {
        f"eval/{evaluated}/{name}": value
        for evaluated, scores in results.items()
        for name, value in scores.items()
    }
