"""Trial of a model before it is trained: does packing give its own log-probs, and if not, why not.

What attention may ask for differs by model and by release of transformers, so no list of models is
looked up. The attention function and the functions that make masks are listened to in one small
forward. Then the log-probs of a few sequences, packed, are compared with those of each one alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from ttrl.models.attention import packed_attention, packed_hidden_states
from ttrl.models.packing import lay_out, moved
from ttrl.types import TrainSample

LISTENED = "ttrl_listened"
"""The name of packed attention while it is listened to."""

LONGEST = 8192
"""Tokens of the longest sequence that is tried: what it takes is little beside an update, and no
window that is known is wider. That of a wider one is only compared with the model's mask."""

BEYOND = 8
"""Tokens of a sequence that is tried beyond a sliding window."""

KEPT = 16
"""Last log-probs of a sequence that are compared: all logits of a long one are too many."""


@dataclass(frozen=True)
class Probe:
    """A sequence that is tried."""

    ids: tuple[int, ...]
    start: int = 0
    """The position of the first token."""
    most: int = KEPT
    """Last log-probs that are compared, at most; the tokens before them are a prompt."""

    @property
    def kept(self) -> int:
        """The number of log-probs that are compared."""
        return min(self.most, len(self.ids) - 1)

    def sample(self) -> TrainSample:
        """Return the sequence as it is packed."""
        trained = [i >= len(self.ids) - self.kept for i in range(len(self.ids))]
        zeros = (0.0,) * self.kept
        return TrainSample("", self.ids, tuple(trained), zeros, zeros)

    def positions(self, device: torch.device) -> torch.Tensor:
        """Return the positions of the sequence's tokens."""
        return torch.arange(self.start, self.start + len(self.ids), device=device)


SHORT = Probe((3, 1, 4, 1))
"""Ids that every vocabulary has, where only what is computed matters."""

LAST = 6
"""Tokens of the sequence at the last positions."""


@dataclass
class Heard:
    """Record of what a model asked of its attention in one forward."""

    longest: int
    """Tokens that a sequence may have."""
    layers: list[torch.nn.Module] = field(default_factory=list)
    """Layers that began, in order."""
    modules: set[torch.nn.Module] = field(default_factory=set)
    """Modules that called the attention function."""
    masks: list[tuple[torch.Tensor, int | None]] = field(default_factory=list)
    """Masks that were made, each with the first token that does not see its sequence's first."""
    windows: set[int] = field(default_factory=set)
    """Sliding windows that the attention function was told."""
    untold: set[int] = field(default_factory=set)
    """Windows of the masks that attention was given, where it was told none, or another one."""
    looks_ahead: bool = False
    """Whether a mask showed a token what comes after it."""

    def no_attention(self) -> list[torch.nn.Module]:
        """Return the layers that computed no attention, or not through transformers' interface."""
        return [layer for layer in self.layers if self.modules.isdisjoint(layer.modules())]


_hearing: list[Heard] = []
"""Records that are being made; the last one is that of the present forward."""


def _mask(*_: Any, mask_function: Any, device: torch.device, **__: Any) -> torch.Tensor:
    """Make a mask that can be known again; what it hides is read off its function."""
    heard = _hearing[-1]
    zero, one = (torch.tensor(i, device=device) for i in (0, 1))
    heard.looks_ahead |= bool(mask_function(zero, zero, zero, one))
    row_L = torch.arange(heard.longest, device=device)
    sees_L = mask_function(zero, zero, row_L, torch.zeros_like(row_L)).expand_as(row_L)
    hidden = (~sees_L).nonzero().flatten().tolist()
    rows = len(SHORT.ids) - 1  # nothing is predicted from the last token
    made = torch.ones(1, 1, rows, rows, dtype=torch.bool, device=device)
    heard.masks.append((made, hidden[0] if hidden else None))
    return made


def _attention(
    module: torch.nn.Module, q: Any, k: Any, v: Any, attention_mask: Any, **options: Any
) -> Any:
    """Note what a layer asks for, and compute it."""
    heard = _hearing[-1]
    heard.modules.add(module)
    window = options.get("sliding_window")
    if window is not None:
        heard.windows.add(window)
    for made, cut in heard.masks:
        if attention_mask is made:  # and not something that was computed from it
            attention_mask = None
            if cut not in (None, window):
                heard.untold.add(cut)
    return packed_attention(module, q, k, v, attention_mask, **options)


AttentionInterface.register(LISTENED, _attention)
AttentionMaskInterface.register(LISTENED, _mask)


def listen(model: PreTrainedModel, longest: int) -> tuple[Heard, Exception | None]:
    """Record what a model asks of its attention where sequences have up to ``longest`` tokens.

    Returns:
        All that was heard; and what went wrong, if the forward did not reach its end.
    """
    heard = Heard(longest)
    model.set_attn_implementation(LISTENED)
    _hearing.append(heard)
    try:
        with _noted(model, heard.layers):
            packed_logprobs(model, [SHORT])
    except torch.OutOfMemoryError:  # which is not the model's fault
        raise
    except Exception as error:
        return heard, error
    finally:
        _hearing.pop()
    return heard, None


@contextmanager
def _noted(model: PreTrainedModel, layers: list[torch.nn.Module]) -> Iterator[None]:
    """Append each layer that begins inside the context to ``layers``."""
    hooks = [
        layer.register_forward_pre_hook(lambda layer, _: layers.append(layer))
        for layer in model.modules()
        if isinstance(layer, GradientCheckpointingLayer)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def probes(heard: Heard, vocabulary: int) -> list[Probe]:
    """Make the sequences to try: short ones, one beyond a window, one at the last positions.

    Two of the short ones have the same prompt. The window is the widest one. The last positions are
    those that the run will have, for a rotary embedding may look at the highest of a batch.
    """
    start, half = max(0, heard.longest - LAST), LAST // 2
    prompt = _ids(half, 4, vocabulary)
    tried = [Probe(_ids(4, 1, vocabulary)), Probe(_ids(LAST, 2, vocabulary), start)]
    tried[1:1] = [Probe((*prompt, *_ids(half, seed, vocabulary)), most=half) for seed in (5, 6)]
    limit = min(heard.longest, LONGEST)
    if windows := [w for w in heard.windows if w < limit]:
        length = min(limit, max(windows) + BEYOND)
        tried.insert(1, Probe(_ids(length, 3, vocabulary)))
    return tried


def _ids(count: int, seed: int, vocabulary: int) -> tuple[int, ...]:
    """Make token ids without a pattern.

    The first of a vocabulary are left out: real models answer special tokens with such large
    numbers that rounding alone moves a log-prob by a nat.
    """
    ids = (100 + (31 * i * i + 7 * i * seed + seed) % 1000 for i in range(count))
    return tuple(token % vocabulary for token in ids)


@torch.no_grad()
def own_logprobs(model: PreTrainedModel, tried: Sequence[Probe]) -> torch.Tensor:
    """Compute log-probs of each sequence's last tokens by the model's own logits, one by one."""
    logp = []
    for probe in tried:
        ids_T = torch.tensor(probe.ids, device=model.device)
        out = model(
            input_ids=ids_T.unsqueeze(0),
            position_ids=probe.positions(model.device).unsqueeze(0),
            use_cache=False,
            logits_to_keep=probe.kept + 1,
        )
        targets_K1 = ids_T[-probe.kept :].unsqueeze(1)
        logp.append(out.logits[0, :-1].float().log_softmax(-1).gather(1, targets_K1).squeeze(1))
    return torch.cat(logp)


@torch.no_grad()
def packed_logprobs(model: PreTrainedModel, tried: Sequence[Probe]) -> torch.Tensor:
    """Compute log-probs of each sequence's last tokens, of all sequences packed together."""
    layout, device = lay_out([probe.sample() for probe in tried]), model.device
    positions_R = torch.from_numpy(layout.positions_R)
    for rows, probe in zip(layout.rows, tried, strict=True):
        if probe.start:  # and then it shares nothing
            positions_R[rows] += probe.start
    hidden_RH = packed_hidden_states(
        model,
        torch.from_numpy(layout.token_ids_R).to(device),
        positions_R.to(device),
        moved(layout.sequences, device),
    )
    kept = [probe.kept for probe in tried]
    row_K = [r for rows, n in zip(layout.rows, kept, strict=True) for r in rows[-n:].tolist()]
    targets_K = [token for probe, n in zip(tried, kept, strict=True) for token in probe.ids[-n:]]
    head = model.get_output_embeddings()
    logp_K: torch.Tensor = head(hidden_RH[row_K], torch.tensor(targets_K, device=device)).logp_T
    return logp_K


def saved_buffers(model: PreTrainedModel) -> str | None:
    """Say what is wrong with a model that has weights beside its parameters, or None."""
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    lost = sorted(model.state_dict().keys() - parameters)
    if not lost:
        return None
    return (
        f"{lost[0]} (of {len(lost)} such) is saved with its weights and is no parameter: it would "
        "not reach the rollout engine"
    )


def explain(heard: Heard, error: Exception | None) -> str | None:
    """Say why what was heard cannot be packed, or None."""
    if isinstance(error, NotImplementedError):
        return str(error)
    if error is None and not heard.modules:
        return (
            "its attention does not go through transformers' AttentionInterface: packed sequences "
            "would see each other"
        )
    if silent := heard.no_attention():
        parts = ", ".join(type(part).__name__ for part in silent[0].children())
        return (
            f"{len(silent)} of {len(heard.layers)} layers that were tried compute no attention "
            f"({type(silent[0]).__name__}: {parts}): packed sequences would run into each other"
            + ("" if error is None else f" ({one_line(error)})")
        )
    if error is not None:
        return one_line(error)
    if heard.looks_ahead:
        return "its attention looks ahead"
    if heard.untold:
        most = min(heard.untold)
        return (
            f"beyond {most} tokens its masks hide a sequence's beginning, and its attention is not "
            f"told of a window; sequences may have {heard.longest} tokens here, expected at most "
            f"{most}: lower data.max_prompt_tokens or rollout.max_new_tokens"
        )
    return None


SUSPECT = re.compile(r"logit|soft_?cap|scal|multipl|alibi|window|chunk|position_embedding_type")
"""Fields of a config that change what attention or the output layer computes."""

PLAIN = {"full_attention", "sliding_attention"}
"""Types of layers that are computed here."""


def suspects(model: PreTrainedModel) -> str:
    """Name what may be the cause where packed log-probs are not the model's own."""
    config = model.config.get_text_config()
    found = [
        f"{name} = {value!r}"
        for name, value in sorted(config.to_dict().items())
        if SUSPECT.search(name) and isinstance(value, int | float | str) and value not in (0, 1)
    ]
    others = {*(getattr(config, "layer_types", None) or ())} - PLAIN
    found += [f"layers of the type {kind!r}" for kind in sorted(others)]
    if _is_fed_otherwise(model):
        found.append("what its output layer is fed is not its base model's last hidden state")
    return ", ".join(found) or "nothing that is known"


@torch.no_grad()
def _is_fed_otherwise(model: PreTrainedModel) -> bool:
    """Say whether something stands between the base model and the output layer."""
    seen: list[torch.Tensor] = []
    hooks = [
        model.base_model.register_forward_hook(lambda *call: seen.append(call[-1][0])),
        model.get_output_embeddings().register_forward_pre_hook(
            lambda _, args: seen.append(args[0])
        ),
    ]
    try:
        own_logprobs(model, [SHORT])
    finally:
        for hook in hooks:
            hook.remove()
    return not torch.equal(*seen)


def one_line(error: Exception) -> str:
    """Return the kind of an error and what it says."""
    said = " ".join(str(error).split())
    return f"{type(error).__name__}: {said[:300]}"
