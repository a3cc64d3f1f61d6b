"""The operators as PyTorch sees them: their registrations, fake tensors, torch.compile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import Case, as_float64, head_case, leaves, loss_case, run_loss
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses import FakeTensorMode
from torch.library import opcheck
from ttrl_kernels import linear_logprob, linear_policy_loss, ops
from ttrl_kernels.loss_math import policy_loss_reference

DTYPES = (torch.float32, torch.bfloat16)


@pytest.fixture(autouse=True)
def fresh_compiler() -> None:
    torch._dynamo.reset()


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The arguments of every operator called, by the operator's name."""
    calls = {}
    for name in ("logprob", "logprob_gradients", "policy_loss", "scaled"):
        op = getattr(ops, name)

        def spy(*args: Any, name: str = name, op: Callable[..., Any] = op) -> Any:
            calls[name] = args
            return op(*args)

        monkeypatch.setattr(ops, name, spy)
    return calls


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function, fullgraph=True, backend="aot_eager")


def logprob_gradients(function: Callable[..., Any], case: Case) -> list[torch.Tensor]:
    """Both outputs, and the gradients of a different multiple of each of their entries."""
    hidden, weight, targets, keywords = case
    out = function(hidden, weight, targets, **keywords)
    scale = torch.linspace(0.1, 1, len(targets), dtype=out[0].dtype)
    total = (out[0] * scale).sum() - 1.3 * (out[1] * scale.flip(0)).sum()
    inputs = leaves(hidden, weight, keywords)
    return [*out, *torch.autograd.grad(total, list(inputs.values()))]


# --- registrations


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "head, options",
    [("plain", "on_policy"), ("all", "sequence_all"), ("all_of_a_support", "entropy")],
)
def test_registrations_of_the_policy_loss(
    head: str, options: str, dtype: torch.dtype, calls: dict[str, Any]
) -> None:
    hidden, weight, targets, keywords = loss_case(dtype, head, options)
    (2 * linear_policy_loss(hidden, weight, targets, **keywords).loss).backward()
    opcheck(torch.ops.ttrl_kernels.policy_loss, calls["policy_loss"])
    opcheck(torch.ops.ttrl_kernels.scaled, calls["scaled"])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("head", ["plain", "all", "all_of_a_support"])
def test_registrations_of_the_log_probs(
    head: str, dtype: torch.dtype, calls: dict[str, Any]
) -> None:
    case = head_case(dtype, head)
    case[2][::3] = -100
    logprob_gradients(linear_logprob, case)
    opcheck(torch.ops.ttrl_kernels.logprob, calls["logprob"])
    # It is a backward itself and has none, so it is checked on inputs that ask for none.
    constants = [x.detach() if torch.is_tensor(x) else x for x in calls["logprob_gradients"]]
    opcheck(torch.ops.ttrl_kernels.logprob_gradients, constants)


@pytest.mark.parametrize("frozen", ["hidden", "weight", "bias"])
def test_registrations_where_a_gradient_is_not_wanted(frozen: str, calls: dict[str, Any]) -> None:
    hidden, weight, targets, keywords = loss_case(torch.float32, "bias")
    {"hidden": hidden, "weight": weight, **keywords}[frozen].requires_grad_(False)
    linear_policy_loss(hidden, weight, targets, **keywords)
    opcheck(torch.ops.ttrl_kernels.policy_loss, calls["policy_loss"])


def test_a_gradient_that_is_not_wanted_is_not_kept(calls: dict[str, Any]) -> None:
    hidden, weight, targets, keywords = loss_case(torch.float32, "bias")
    weight.requires_grad_(False)
    linear_policy_loss(hidden, weight, targets, **keywords)
    gradients = ops.policy_loss(*calls["policy_loss"])[-3:]
    assert [g.shape for g in gradients] == [hidden.shape, (0,), keywords["bias"].shape]


def test_no_output_shares_memory_with_an_input_or_another_output(calls: dict[str, Any]) -> None:
    hidden, weight, targets, keywords = loss_case(torch.float32, "all", "sequence_all")
    linear_policy_loss(hidden, weight, targets, **keywords)
    args = calls["policy_loss"]
    tensors = [x for x in (*args, *ops.policy_loss(*args)) if torch.is_tensor(x)]
    assert len({x.untyped_storage().data_ptr() for x in tensors}) == len(tensors)


@pytest.mark.parametrize("function", [linear_logprob, linear_policy_loss])
def test_a_second_derivative_is_refused(function: Callable[..., Any]) -> None:
    """The gradients are computed ahead: their own gradient would silently be missing."""
    hidden, weight, targets, keywords = (
        loss_case() if function is linear_policy_loss else head_case()
    )
    out = function(hidden, weight, targets, **keywords)
    (first,) = torch.autograd.grad(out[0].sum().square(), hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


# --- fake tensors


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("ref", [True, False])
def test_fakes_have_the_shapes_and_dtypes_of_real_results(
    ref: bool, dtype: torch.dtype, calls: dict[str, Any]
) -> None:
    """Op by op: between operators autograd would convert a gradient of the wrong dtype."""
    hidden, weight, targets, keywords = loss_case(dtype, "all", "entropy")
    keywords["ref_logp_T"] = keywords["ref_logp_T"] if ref else None
    (2 * linear_policy_loss(hidden, weight, targets, **keywords).loss).backward()
    logprob_gradients(linear_logprob, head_case(dtype, "all"))
    assert len(calls) == 4
    mode = FakeTensorMode()
    for name, args in calls.items():
        op = getattr(torch.ops.ttrl_kernels, name)
        args = [x.detach() if torch.is_tensor(x) else x for x in args]
        with mode:
            faked = op(*(mode.from_tensor(x) if torch.is_tensor(x) else x for x in args))
        real = op(*args)
        if torch.is_tensor(real):
            real, faked = [real], [faked]
        assert [describe(x) for x in faked] == [describe(x) for x in real], name


def run(function: Callable[..., Any], case: Case) -> list[torch.Tensor | None]:
    """Everything that comes out of a loss, gradients included, as a list."""
    hidden, weight, targets, keywords = case
    result = function(hidden, weight, targets, **keywords)
    return [*result, *torch.autograd.grad(result.loss, [hidden, weight, keywords["bias"]])]


def describe(x: torch.Tensor | None) -> Any:
    return x if x is None else (x.shape, x.dtype, x.device, x.stride(), x.requires_grad)


# --- torch.compile


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("options", ["on_policy", "clip", "cispo", "sequence_all"])
def test_compiled_policy_loss_has_the_same_bits(options: str, dtype: torch.dtype) -> None:
    case = loss_case(dtype, "all", options)
    eager = run(linear_policy_loss, case)
    ours = run(compiled(linear_policy_loss), case)
    for x, expected in zip(ours, eager, strict=True):
        assert x is expected or torch.equal(x, expected)
    assert [describe(x) for x in ours] == [describe(x) for x in eager]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("head", ["plain", "all"])
def test_compiled_log_probs_have_the_same_bits(head: str, dtype: torch.dtype) -> None:
    case = head_case(dtype, head)
    case[2][::3] = -100
    eager = logprob_gradients(linear_logprob, case)
    ours = logprob_gradients(compiled(linear_logprob), case)
    assert all(torch.equal(x, expected) for x, expected in zip(ours, eager, strict=True))


def test_compiled_within_a_model_between_other_operations() -> None:
    """The gradient flows through what the compiler made of the operations before and after."""

    def model(
        hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, keywords: dict[str, Any]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        result = linear_policy_loss(hidden.tanh() * 2, weight, targets, **keywords)
        return 0.3 * result.loss, result.logp_T, result.gradient_rows

    case = hidden, weight, *_ = loss_case(options="entropy")
    out = []
    for function in (model, compiled(model)):
        loss, logp, rows = function(*case)
        out.append((loss, logp, rows, *torch.autograd.grad(loss, (hidden, weight))))
        assert not logp.requires_grad
    for x, expected in zip(*reversed(out), strict=True):
        torch.testing.assert_close(x, expected)


def test_backward_twice_through_a_compiled_loss() -> None:
    hidden, weight, targets, keywords = loss_case()
    loss = compiled(linear_policy_loss)(hidden, weight, targets, **keywords).loss
    loss.backward(retain_graph=True)
    first = weight.grad.clone()
    loss.backward()
    assert torch.equal(weight.grad, 2 * first) and first.abs().max() > 0


def test_a_gradient_that_was_handed_out_may_be_changed() -> None:
    """An optimizer that clips or clears gradients in place must not reach what the graph keeps."""
    hidden, weight, targets, keywords = loss_case(torch.float32, "bias")
    loss = linear_policy_loss(hidden, weight, targets, **keywords).loss
    gradients = []
    for _ in range(3):
        loss.backward(retain_graph=True)
        gradients.append([x.grad.clone() for x in (hidden, weight, keywords["bias"])])
        for x in (hidden, weight, keywords["bias"]):
            x.grad.zero_()
    for again in gradients[1:]:
        assert all(map(torch.equal, again, gradients[0]))


def test_neither_tokens_nor_live_rows_recompile() -> None:
    counter = CompileCounterWithBackend("aot_eager")
    function = torch.compile(linear_policy_loss, fullgraph=True, backend=counter, dynamic=True)
    compilations = []
    for seed, tokens in enumerate((41, 41, 7, 100)):  # other dead tokens each time
        case = loss_case(torch.float32, "bias", "entropy", seed=seed, shape=(tokens, 16, 101))
        for name, value in run_loss(function, case).items():
            torch.testing.assert_close(value, run_loss(linear_policy_loss, case)[name])
        compilations.append(counter.frame_count)
    assert len(set(compilations)) == 1


def test_a_wrong_value_is_reported_by_compiled_code_too() -> None:
    hidden, weight, targets, keywords = loss_case()
    function = compiled(linear_policy_loss)
    function(hidden, weight, targets, **keywords)
    live = int(keywords["token_weights_T"].nonzero()[2])
    targets[live] = 101
    with pytest.raises(ValueError, match=rf"targets_T\[{live}\] is 101, expected 0 to 100"):
        function(hidden, weight, targets, **keywords)


def test_liger_1362_1364_1366_python_floats_through_inductor() -> None:
    """Floats reached Liger's kernels as float64 once compiled, and the result was corrupted.

    Here every number of the call is a Python float, given at run time, and the gradient is
    multiplied by one more; inductor generates code around the operator.
    """

    def scaled(
        hidden: torch.Tensor,
        weight: torch.Tensor,
        targets: torch.Tensor,
        keywords: dict[str, Any],
        temperature: float,
        scale: float,
    ) -> torch.Tensor:
        keywords = {**keywords, "temperature": temperature}
        return linear_policy_loss(hidden * scale, weight, targets, **keywords).loss * scale

    case = hidden, weight, *_ = loss_case(torch.float32, "bias", "sequence_all")
    # Without vector instructions the generated code compiles in half the time.
    quick = {"cpp.simdlen": 1, "cpp.vec_isa_ok": False, "cpp_cache_precompile_headers": False}
    function = torch.compile(scaled, fullgraph=True, options=quick)
    for temperature in (0.6, 0.7):
        ours = torch.autograd.grad(function(*case, temperature, 1 / 3), (hidden, weight))
        eager = torch.autograd.grad(scaled(*case, temperature, 1 / 3), (hidden, weight))
        wide = h, w, t, k = as_float64(*case)
        k = {**k, "temperature": temperature}
        truth = policy_loss_reference(h / 3, w, t, **k).loss / 3
        truth = torch.autograd.grad(truth, wide[:2])
        for x, e, t in zip(ours, eager, truth, strict=True):
            assert x.dtype == torch.float32
            torch.testing.assert_close(x, e, rtol=1e-6, atol=1e-7)
            torch.testing.assert_close(x.double(), t, rtol=1e-4, atol=1e-5)
