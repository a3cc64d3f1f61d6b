"""The self-tests of ``ttrl doctor``: each computes a little, and compares it with a slower way.

Each returns what it measured, or raises: `Lacks` for what not every machine has to have, anything
else for what does not work.
"""

from __future__ import annotations

import os
import shutil
import sysconfig
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import torch
from ttrl_kernels import linear_policy_loss

from ttrl.learner.local import LocalModel
from ttrl.learner.policy_objective import PolicyObjective
from ttrl.models.attention import packed_attention
from ttrl.models.packed_model import load_policy_model
from ttrl.models.packing import moved
from ttrl.models.pretrained import load_tokenizer
from ttrl.rollout.engines.vllm_contract import require_vllm
from ttrl.rollout.pool import make_pool
from ttrl.rollout.sampling import SamplingParams
from ttrl.settings.recipe import load_settings
from ttrl.system.gpus import device
from ttrl.types import CompletionGroup, PackedSequences, Question, TrainSample, UserError

LENGTHS = (70, 1, 130, 7)
"""Lengths of sequences in the attention test: within a tile of a kernel, across tiles, tiny."""

BF16_STEP = 2.0**-8
"""Half the distance from a bfloat16 to the next, relative to it."""


class Lacks(Exception):
    """A self-test lacks something here; not a failure."""


def sample_and_train() -> str:
    """Let the embedded model answer one question and learn from it."""
    settings = load_settings("tiny-arithmetic")
    tokenizer = load_tokenizer(settings.model)
    policy = LocalModel(load_policy_model(settings.model), settings)
    pool = make_pool(settings, tokenizer)
    pool.push_weights(policy)
    prompt = "What is 12 + 34?"
    question = Question("self-test", prompt, tuple(tokenizer.encode(prompt)))
    params = SamplingParams(n=2, temperature=1.0, max_new_tokens=8, stream=(0,))
    group = pool.sample([question], params)[0]
    samples = [
        TrainSample.of_answer(question.id, question.prompt_ids, c.token_ids, c.logprobs, advantage)
        for c, advantage in zip(group.completions, (1.0, -1.0), strict=True)
    ]
    (result,) = policy.update(samples, PolicyObjective.of(settings, policy), rate=1e-5)
    gap = result.largest["sampler_max_gap"]
    return f"sampler and trainer agree on log-probs to {gap:.1e}"


def write() -> str:
    """Make a file where runs would go."""
    with tempfile.TemporaryDirectory(dir=Path.cwd(), prefix=".ttrl-doctor-"):
        return f"runs go to {Path('runs').resolve()}"


def triton_rows() -> str:
    """Compile and launch the Triton rows; compare loss and gradients with PyTorch's rows."""
    _require_gpu("gcc or clang, and Python.h")
    _require_compiler()
    begun = time.perf_counter()
    ours, plain = (_loss_and_gradients(backend) for backend in ("triton", "torch"))
    seconds = time.perf_counter() - begun
    gaps = [_gap(mine, theirs) for mine, theirs in zip(ours, plain, strict=True)]
    if not max(gaps) < 1e-4:  # float32; NaN is no agreement
        raise ArithmeticError(f"they differ from PyTorch's rows by {max(gaps):.1e} of the largest")
    return f"gradients are PyTorch's to {max(gaps):.1e}, compiled and run in {seconds:.1f} s"


def _loss_and_gradients(backend: str) -> list[torch.Tensor]:
    """Compute the loss of 16 tokens, vocabulary 5003, and hidden and weight gradients."""
    g = torch.Generator().manual_seed(0)
    hidden_TH, weight_VH, advantages_T = (
        torch.randn(shape, generator=g).to(device()) for shape in ((16, 64), (5003, 64), (16,))
    )
    leaves = hidden_TH.requires_grad_(), weight_VH.requires_grad_()
    result = linear_policy_loss(
        *leaves,
        torch.randint(5003, (16,), generator=g).to(device()),
        advantages_T=advantages_T,
        token_weights_T=torch.full((16,), 1 / 16).to(device()),
        entropy_coef=0.01,
        backend=backend,
    )
    return [result.loss.detach(), *torch.autograd.grad(result.loss, leaves)]


def packed_attention_on_gpu() -> str:
    """Run attention for sequences of different lengths; compare it with padded attention."""
    _require_gpu("and nothing else (nvcc only to install flash-attn)")
    g = torch.Generator().manual_seed(0)
    total = sum(LENGTHS)
    shapes = ((4, total), (2, total), (2, total), (4, total))  # the last one: the gradient above
    query, key, value, above = (
        torch.randn(1, heads, rows, 64, generator=g).to(device()) for heads, rows in shapes
    )
    inputs = [x.bfloat16() for x in (query, key, value, above)]
    gaps: list[float] = []
    for sequences in (_apart(), _with_a_common_prompt()):
        ours = _attention_and_gradients(sequences, *inputs)
        padded = _attention_and_gradients(sequences, *(x.float() for x in inputs))
        gaps += [_gap(mine, theirs) for mine, theirs in zip(ours, padded, strict=True)]
    if not max(gaps) < 8 * BF16_STEP:
        raise ArithmeticError(f"it differs from padded attention by {max(gaps):.1e} of the largest")
    return f"forward and backward in bfloat16 are float32's to {max(gaps):.1e}"


def _apart() -> PackedSequences:
    """Return sequences of `LENGTHS`."""
    return PackedSequences(torch.tensor((0, *LENGTHS)).cumsum(0, dtype=torch.int32), max(LENGTHS))


def _with_a_common_prompt() -> PackedSequences:
    """Return sequences of `LENGTHS`, of which all others see the first one's rows."""
    first, *rows = torch.arange(sum(LENGTHS)).split(LENGTHS)
    keys = [first, *(torch.cat([first, own]) for own in rows)]
    counts = [len(seen) for seen in keys]
    key_ends = torch.tensor((0, *counts)).cumsum(0, dtype=torch.int32)
    return replace(_apart(), keys_K=torch.cat(keys), key_ends=key_ends, longest_keys=max(counts))


def _attention_and_gradients(
    sequences: PackedSequences,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    above: torch.Tensor,
) -> tuple[torch.Tensor, ...]:
    """Compute output and gradients; in float32 no kernel for different lengths is used."""
    leaves = query.requires_grad_(), key.requires_grad_(), value.requires_grad_()
    module, sequences = torch.nn.Module(), moved(sequences, device())
    out, _ = packed_attention(module, *leaves, None, sequences=sequences)
    return out.detach(), *torch.autograd.grad(out, leaves, above.transpose(1, 2))


def vllm_sleep_and_wake() -> str:
    """Let vLLM sample, sleep, wake up at the same weights and sample the same again."""
    _require_gpu("and vLLM for it")
    try:
        require_vllm()
    except UserError as error:
        raise Lacks(f"a vLLM that a run could use: {error}") from error
    settings = load_settings(
        "tiny-arithmetic", overrides=["rollout.engine=vllm", "model.dtype=bfloat16"]
    )
    tokenizer = load_tokenizer(settings.model)
    policy = LocalModel(load_policy_model(settings.model), settings)
    prompt = "What is 12 + 34?"
    question = Question("self-test", prompt, tuple(tokenizer.encode(prompt)))
    params = SamplingParams(n=8, temperature=1.0, max_new_tokens=32, stream=(0,))
    with closing(make_pool(settings, tokenizer, load_weights=False)) as pool:
        pool.push_weights(policy)
        (before,) = pool.sample([question], params)
        awake = torch.cuda.mem_get_info()[0]
        pool.sleep()
        freed = torch.cuda.mem_get_info()[0] - awake
        pool.push_weights(policy)
        (after,) = pool.sample([question], params)
    if freed <= 0:
        raise RuntimeError("it gave no memory back while it slept")
    gap = _sampled_gap(before, after)
    if not gap < 1e-3:
        raise RuntimeError(f"after waking up its log-probs are off by {gap:.1e}")
    return f"it gave {freed / 2**30:.1f} GiB back; the same tokens, log-probs to {gap:.1e}"


def _sampled_gap(before: CompletionGroup, after: CompletionGroup) -> float:
    """Return the largest difference of log-probs; an error if the tokens differ."""
    pairs = list(zip(before.completions, after.completions, strict=True))
    if any(one.token_ids != other.token_ids for one, other in pairs):
        raise RuntimeError("after waking up it samples other tokens")
    return max(
        abs(p - q)
        for one, other in pairs
        for p, q in zip(one.logprobs, other.logprobs, strict=True)
    )


def _gap(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Return the largest difference, as a share of the largest entry."""
    difference = (ours.float() - theirs.float()).abs().max()
    share: float = (difference / theirs.float().abs().max()).item()
    return share


def _require_gpu(more: str) -> None:
    """Raise `Lacks` where a test cannot be run, for it needs a GPU, and ``more``."""
    if not torch.cuda.is_available():
        raise Lacks(f"an NVIDIA GPU, {more}")


def _require_compiler() -> None:
    """Raise a UserError unless Triton can compile what launches its kernels."""
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    if compiler is None:
        raise UserError("Triton compiles its launcher with gcc or clang (or CC): install one")
    if not header.is_file():
        raise UserError(
            f"Triton compiles its launcher against {header}, which is not there: install Python's "
            "headers (on Debian python3-dev)"
        )


SELF_TESTS: dict[str, Callable[[], str]] = {
    "sample and train": sample_and_train,
    "write here": write,
    "Triton rows": triton_rows,
    "packed attention": packed_attention_on_gpu,
    "vLLM sleeps and wakes": vllm_sleep_and_wake,
}
"""Self-tests in order: closing vLLM ends the groups of processes that this one is in."""
