"""What passes between trainer and engine processes: messages, and weights in shared memory."""

from __future__ import annotations

import socket
import threading
import types

import pytest
import torch
from tiny_models import tiny_questions

from ttrl.rollout.engines import shared_weights, wire
from ttrl.rollout.engines.shared_weights import SharedWeights, read_weights
from ttrl.rollout.engines.wire import Wire
from ttrl.types import Completion, FinishReason, UserError

# ---------------------------------------------------------------------------------------------
# Messages


def test_messages_arrive_whole_and_in_order_however_they_are_cut() -> None:
    ours, theirs = socket.socketpair()
    reader = Wire(theirs)
    text = '"line\nbreak" \\ü😀\udc80' * 50_000
    sent = [{"i": 1}, {"text": text}, {"x": [0.1, -1e-300, 2**60]}]
    threading.Thread(target=lambda: [Wire(ours).send(m) for m in sent]).start()
    received: list[wire.Message] = []
    while len(received) < 3:
        received += reader.read()
    assert received == sent
    ours.sendall(b'{"half": ')
    assert reader.read() == []
    ours.sendall(b'1}\n{"a": 2}\n{"b"')
    assert reader.read() == [{"half": 1}, {"a": 2}]
    ours.close()
    with pytest.raises(EOFError):
        reader.read()
    reader.close()


def test_completions_pass_the_wire_to_the_last_bit() -> None:
    sampled = Completion((1, 300), (-0.1, -1 / 3), "\\boxed{7}\n\udc80", FinishReason.LENGTH)
    (question,) = tiny_questions(17)
    ours, theirs = map(Wire, socket.socketpair())
    ours.send({"completion": wire.from_completion(sampled), "q": wire.from_question(question)})
    (message,) = theirs.read()
    assert wire.to_completion(message["completion"]) == sampled
    assert wire.to_question(message["q"]) == question
    ours.close()
    theirs.close()


def test_a_reader_that_does_not_read_is_no_reason_to_wait_for_ever() -> None:
    ours, theirs = socket.socketpair()
    ours.settimeout(0.2)
    with pytest.raises(TimeoutError):
        Wire(ours).send({"text": "x" * 10**7})
    theirs.close()


# ---------------------------------------------------------------------------------------------
# Weights


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_shared_weights_are_what_was_written_and_belong_to_the_reader(dtype: str) -> None:
    tensors = {"a": torch.randn(3, 5), "b": torch.randn(1), "c": torch.randn(2, 2, 33)}
    shared = SharedWeights({n: t.shape for n, t in tensors.items()}, dtype)
    assert all(p["offset"] % shared_weights.ALIGNMENT == 0 for p in shared.index.values())
    for scale in (1, 2):
        shared.write((n, scale * t) for n, t in tensors.items())
        read = dict(read_weights(shared.descriptor, shared.index))
        assert list(read) == list(tensors)
        for name, tensor in tensors.items():
            assert torch.equal(read[name], (scale * tensor).to(getattr(torch, dtype)))
    read["a"].zero_()
    again = dict(read_weights(shared.descriptor, shared.index))
    assert torch.equal(again["a"], (2 * tensors["a"]).to(getattr(torch, dtype)))
    shared.close()


def test_a_gpu_writes_into_pinned_memory_until_it_is_given_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[tuple[object, ...]] = []

    def check_error(code: int) -> None:
        if code:
            raise RuntimeError(f"CUDA error {code}")

    runtime = types.SimpleNamespace(
        cudaHostRegister=lambda *a: calls.append(("register", *a)) or 0,
        cudaHostUnregister=lambda *a: calls.append(("unregister", *a)) or 0,
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: runtime)
    monkeypatch.setattr(torch.cuda, "check_error", check_error)
    shared = SharedWeights({"a": torch.Size([3, 5]), "b": torch.Size([1])}, "float32")
    address = shared._tensors["a"].data_ptr()
    assert calls == [("register", address, 128, 0)]
    shared.close()
    shared.close()
    assert calls[1:] == [("unregister", address)]
    runtime.cudaHostRegister = lambda *a: 2
    with pytest.raises(UserError, match=r"cannot pin 0\.0 GiB of the host.s memory: CUDA error 2"):
        SharedWeights({"a": torch.Size([1])}, "float32")


def test_more_memory_than_there_is_is_never_asked_for() -> None:
    """Linux would not refuse it, but end processes until there is enough."""
    message = r"keeps a copy of the weights .* 4294967296\.0 GiB, but only \d+\.\d GiB are free"
    with pytest.raises(UserError, match=message):
        SharedWeights({"huge": torch.Size([2**30, 2**30])}, "float32")
