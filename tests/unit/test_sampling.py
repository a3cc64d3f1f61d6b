"""Drawing a token from logits: temperature, top-p, inversion."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ttrl.rollout.sampling import draw, sampling_logprobs
from ttrl.system.rng import generator
from ttrl.types import UserError

LARGEST_U = 1 - 2**-53  # the largest number that numpy's Generator.random returns
NEVER = -math.inf

# ---------------------------------------------------------------------------------------------
# draw. Where all log-probs are 0 or -inf, the cumulative sums are whole numbers, free of rounding;
# `draw` scales u to their sum, so that they need not be normalized.


@pytest.mark.parametrize(
    ("u", "token"),
    [
        (0.0, 0),
        (math.nextafter(0.25, 0), 0),
        (0.25, 1),  # the first token whose cumulative probability exceeds u
        (0.5, 2),
        (math.nextafter(0.75, 0), 2),
        (0.75, 3),
        (LARGEST_U, 3),
    ],
)
def test_draw_inverts_the_cumulative_distribution(u: float, token: int) -> None:
    assert draw(torch.zeros(1, 4), torch.tensor([u], dtype=torch.float64)).tolist() == [token]


@pytest.mark.parametrize(
    ("u", "token"), [(0.0, 1), (math.nextafter(0.5, 0), 1), (0.5, 4), (LARGEST_U, 4)]
)
def test_draw_passes_over_tokens_of_probability_zero(u: float, token: int) -> None:
    logp = torch.tensor([[NEVER, 0.0, NEVER, NEVER, 0.0, NEVER]])
    assert draw(logp, torch.tensor([u], dtype=torch.float64)).tolist() == [token]


@pytest.mark.parametrize("seed", range(5))
def test_draw_finds_a_possible_token_wherever_u_falls(seed: int) -> None:
    """Every boundary between two tokens, its neighbours, and both ends, where the sum of rounded
    probabilities is not exactly 1 and most tokens are impossible."""
    rng = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(500, generator=rng)
    logits[torch.rand(500, generator=rng) < 0.7] = NEVER
    logits[-3:] = NEVER
    logp = torch.log_softmax(logits, dim=0)
    cdf = logp.exp().double().cumsum(0)
    assert cdf[-1] != 1
    edges = (cdf / cdf[-1]).numpy()
    u = np.concatenate([[0, LARGEST_U], edges, np.nextafter(edges, 0), np.nextafter(edges, 1)])
    u = torch.from_numpy(u.clip(0, LARGEST_U))
    tokens = draw(logp.expand(len(u), -1), u)
    assert bool((logp[tokens] > NEVER).all())
    order = u.argsort()
    assert bool((tokens[order].diff() >= 0).all())
    assert set(tokens.tolist()) == set((logp > NEVER).nonzero().flatten().tolist())


def one_sum(logp_V: torch.Tensor, u: float) -> int:
    """The readable twin: all probabilities in float64, one sum after the other."""
    cdf = logp_V.exp().double().cumsum(0)
    return int((cdf > u * cdf[-1]).nonzero()[0])


@pytest.mark.parametrize("size", [1, 2, 3, 16, 17, 258, 5000])
def test_draw_is_that_of_a_readable_twin(size: int) -> None:
    """Several draws from each distribution, some of which lack most tokens."""
    rng = torch.Generator().manual_seed(size)
    logits = 4 * torch.randn(3, size, generator=rng)
    logits[1, torch.rand(size, generator=rng) < 0.9] = NEVER
    logits[1, size // 2] = 0.0
    logp = torch.log_softmax(logits, dim=-1)
    u = torch.rand(500, generator=rng, dtype=torch.float64)
    which = torch.randint(3, (500,), generator=rng)
    expected = [one_sum(logp[i], x) for i, x in zip(which.tolist(), u.tolist(), strict=True)]
    assert draw(logp, u, which).tolist() == expected


def test_rows_are_drawn_independently() -> None:
    logp = torch.tensor([[0.0, NEVER], [NEVER, 0.0], [0.0, 0.0], [0.0, 0.0]])
    u = torch.tensor([0.9, 0.1, 0.1, 0.9], dtype=torch.float64)
    assert draw(logp, u).tolist() == [0, 1, 0, 1]


def test_frequencies_match_the_probabilities() -> None:
    probs = torch.tensor([0.5, 0.3, 0.0, 0.15, 0.05])
    draws = 20_000
    u = torch.from_numpy(generator(0, "frequencies").random(draws))
    counts = draw(probs.log().expand(draws, -1), u).bincount(minlength=5)
    expected = draws * probs
    possible = probs > 0
    chi_square = ((counts - expected).square()[possible] / expected[possible]).sum().item()
    assert chi_square < 16.27  # 3 degrees of freedom: a right `draw` exceeds it for 1 seed in 1000
    assert counts[2] == 0


# ---------------------------------------------------------------------------------------------
# sampling_logprobs


@pytest.mark.parametrize(
    ("temperature", "expected"),
    [(1.0, [0.25, 0.75]), (0.5, [0.1, 0.9]), (2.0, [1 / (1 + 3**0.5), 3**0.5 / (1 + 3**0.5)])],
)
def test_temperature_divides_the_logits(temperature: float, expected: list[float]) -> None:
    logp = sampling_logprobs(torch.tensor([[0.0, math.log(3)]]), temperature, top_p=1.0)
    assert logp.exp()[0].tolist() == pytest.approx(expected, rel=1e-6)


def readable_top_p(logits: list[float], temperature: float, top_p: float) -> list[float]:
    """Probabilities after top-p: take the best tokens, lower ids first among equals, until they
    hold ``top_p`` of the mass, and share the whole among them."""
    weights = [math.exp((x - max(logits)) / temperature) for x in logits]
    probs = [w / math.fsum(weights) for w in weights]
    kept: list[int] = []
    for token in sorted(range(len(probs)), key=lambda i: (-probs[i], i)):
        if math.fsum(probs[i] for i in kept) >= top_p:
            break
        kept.append(token)
    mass = math.fsum(probs[i] for i in kept)
    return [probs[i] / mass if i in kept else 0.0 for i in range(len(probs))]


@given(
    seed=st.integers(0, 10**6),
    size=st.integers(1, 40),
    temperature=st.sampled_from([0.3, 1.0, 1.7]),
    top_p=st.sampled_from([1e-6, 0.1, 0.5, 0.95, 0.999]),
)
def test_top_p_is_that_of_a_readable_twin(
    seed: int, size: int, temperature: float, top_p: float
) -> None:
    logits = 2 * torch.randn(2, size, generator=torch.Generator().manual_seed(seed))
    probs = sampling_logprobs(logits, temperature, top_p).exp()
    for row, ours in zip(logits.tolist(), probs.tolist(), strict=True):
        assert ours == pytest.approx(readable_top_p(row, temperature, top_p), rel=1e-5)
        assert math.fsum(ours) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("logits", "top_p", "kept"),
    [
        ([0.0, 0.0, 0.0, 0.0], 0.4, [0, 1]),
        ([0.0, 0.0, 0.0, 0.0], 0.8, [0, 1, 2, 3]),
        ([-9.0, 0.0, -9.0, 0.0], 0.3, [1]),
        ([-9.0, 0.0, -9.0, 0.0], 0.9, [1, 3]),
    ],
)
def test_among_equally_probable_tokens_the_lower_ids_are_kept(
    logits: list[float], top_p: float, kept: list[int]
) -> None:
    logp = sampling_logprobs(torch.tensor([logits]), 1.0, top_p)[0]
    assert (logp > NEVER).nonzero().flatten().tolist() == kept
    assert logp[kept].exp().tolist() == pytest.approx([1 / len(kept)] * len(kept), rel=1e-6)


@pytest.mark.parametrize("logits", [[1.0, 3.0, 2.0], [3.0, 3.0, 3.0], [0.0, 1e-6, 0.0]])
def test_a_tiny_top_p_keeps_exactly_the_best_token(logits: list[float]) -> None:
    logp = sampling_logprobs(torch.tensor([logits]), 1.0, top_p=1e-9)[0]
    expected = [NEVER] * 3
    expected[logits.index(max(logits))] = 0.0
    assert logp.tolist() == expected


def test_top_p_of_one_keeps_even_the_least_probable_token() -> None:
    logp = sampling_logprobs(torch.tensor([[0.0, -80.0]]), 1.0, top_p=1.0)[0]
    assert logp.tolist() == pytest.approx([0.0, -80.0])


# Of these, at temperature 2, the probabilities are 8/20, 5/20, 4/20, 2/20 and 1/20.
LOGITS = [[2 * math.log(share) for share in (4.0, 8.0, 1.0, 5.0, 2.0)]]


@pytest.mark.parametrize(
    ("min_p", "top_k", "top_p", "kept"),
    [
        (0.0, 0, 1.0, {1: 8, 3: 5, 0: 4, 4: 2, 2: 1}),
        (0.24, 0, 1.0, {1: 8, 3: 5, 0: 4, 4: 2}),  # 2/8 of the most probable, 1/8 is less
        (0.0, 3, 1.0, {1: 8, 3: 5, 0: 4}),
        (0.0, 0, 0.66, {1: 8, 3: 5, 0: 4}),  # 13/20 are too few
        (0.0, 3, 0.66, {1: 8, 3: 5}),  # of the 17 that top_k has left, 13 are enough
        (0.6, 0, 0.62, {1: 8, 3: 5}),  # of the 13 that min_p has left, 8 are too few,
        (0.6, 0, 0.61, {1: 8}),  # and here enough: 8/13 = 0.615
        (0.6, 1, 0.62, {1: 8}),
        (0.24, 3, 0.77, {1: 8, 3: 5, 0: 4}),  # 13/17 = 0.765
        (0.24, 3, 0.76, {1: 8, 3: 5}),
        (0.0, 9, 1.0, {1: 8, 3: 5, 0: 4, 4: 2, 2: 1}),
    ],
)
def test_each_filter_sees_what_the_one_before_has_left(
    min_p: float, top_k: int, top_p: float, kept: dict[int, int]
) -> None:
    probs = sampling_logprobs(torch.tensor(LOGITS), 2.0, top_p, top_k, min_p).exp()[0]
    expected = [kept.get(token, 0) / sum(kept.values()) for token in range(5)]
    assert probs.tolist() == pytest.approx(expected, rel=1e-5)


def test_of_equals_at_the_end_of_top_k_the_lower_ids_stay() -> None:
    logp = sampling_logprobs(torch.tensor([[1.0, 5.0, 1.0, 1.0]]), 1.0, 1.0, top_k=3)[0]
    assert (logp > NEVER).tolist() == [True, True, True, False]


@pytest.mark.parametrize("top_p", [1.0, 0.9])
def test_log_probs_of_bfloat16_logits_are_float32(top_p: float) -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0, 3.0]], dtype=torch.bfloat16)
    logp = sampling_logprobs(logits, 0.7, top_p)
    assert logp.dtype == torch.float32
    assert logp.tolist() == sampling_logprobs(logits.float(), 0.7, top_p).tolist()


# ---------------------------------------------------------------------------------------------
# Random numbers


def test_streams_are_told_apart_by_every_part_and_its_type() -> None:
    streams = [(0, "q", 1), (0, "q", 11), (0, "q1", 1), ("0", "q", 1), (0, "q"), (0, "q", 1, 1)]
    assert len({generator(*stream).random() for stream in streams}) == len(streams)
    assert generator(0, "q", 1).random(3).tolist() == generator(0, "q", 1).random(3).tolist()


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_logits_that_are_no_numbers_are_refused(broken: float) -> None:
    """One row of several; where every logit is the same infinity there is no distribution."""
    logits_BV = torch.zeros(3, 4)
    logits_BV[1, 2] = broken
    u_B = torch.full((3,), 0.5, dtype=torch.float64)
    with pytest.raises(UserError, match="the model's log-probs are not finite"):
        draw(sampling_logprobs(logits_BV, 1.0, 1.0), u_B)


def test_at_temperature_0_the_most_probable_token_is_drawn() -> None:
    """Also where no temperature would tell two logits apart, and the first of equal ones."""
    near = torch.tensor([[1e4, 1e4 + 1e-3, 0.0], [5.0, 7.0, 7.0]])
    assert near[0, 1] > near[0, 0]
    logp_BV = sampling_logprobs(near, 0.0, 0.5)
    assert logp_BV.tolist() == [[-math.inf, 0.0, -math.inf], [-math.inf, 0.0, -math.inf]]
    for u in (0.0, 0.5, 1 - 2**-53):
        assert draw(logp_BV, torch.full((2,), u, dtype=torch.float64)).tolist() == [1, 1]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_at_temperature_0_what_is_not_finite_is_refused(bad: float) -> None:
    logp_BV = sampling_logprobs(torch.tensor([[0.0, bad]]), 0.0, 1.0)
    with pytest.raises(UserError, match="not finite"):
        draw(logp_BV, torch.tensor([0.5], dtype=torch.float64))
