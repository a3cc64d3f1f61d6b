"""The section [rollout]: sampling of the answers that vote."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ttrl.settings.section import Count, Positive, Section, Temperature

MOST_TOP_K = 128
"""The largest ``top_k``: so many tokens are noted for each one that is trained, 8 bytes each."""

IN_TURNS = ("debate", "mixture", "chain")
"""Shipped workflows of several agents, who answer in turns."""


class RolloutSettings(Section):
    """Sampling of the answers that vote."""

    engine: Literal[
        "transformers",
        "vllm",
    ] = "transformers"
    """What generates: transformers works anywhere; vllm is fast, and installed separately."""
    workflow: str = "single_turn"
    """How questions become groups of answers. single_turn: each is asked ``votes`` times. debate:
    ``agents`` answer in ``rounds``, from the second on with the others' last answers before them.
    mixture: ``agents`` answer, one more makes one answer of theirs. chain: a generator, verifiers
    and a refiner, ``agents`` in all. Or FILE.py:CLASS, a class made with the settings that has
    `ttrl.rollout.workflows.Workflow.run`. See [agents], and ``policies`` for who they are."""
    agents: Count = 1
    """debate, mixture, chain: how many there are; the aggregator of a mixture is one more."""
    rounds: Count = 1
    """debate: how often each agent answers."""
    policies: Literal["shared", "per_agent"] = "shared"
    """shared: one policy plays all agents. per_agent: each agent is a policy of its own, trained on
    its own answers alone; n agents are n models, all of which begin as ``model.path``."""
    questions_per_step: Positive = 8
    """Questions in one step."""
    votes: Annotated[int, Field(ge=2, le=2**16)] = 64
    """Answers sampled per question, by all agents in all their turns; all of them vote, or
    those that ``agents.voters`` names."""
    temperature: Temperature = 1.0
    """Sampling temperature; the loss uses the same one."""
    top_k: Annotated[int, Field(ge=0, le=MOST_TOP_K)] = 0
    """Sample from so many of the most probable tokens only; the loss knows which. 0: from all."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """With top_k: of those, only the most probable ones that together reach this share of their
    mass; the loss knows which. 1: all of them."""
    min_p: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """With top_k: only tokens with at least this share of the most probable one's probability."""
    stop: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(strict=False)] = ()
    """An answer also ends with the token that completes one of these in its text, as "</answer>";
    it is trained on, too."""
    max_new_tokens: Positive = 3072
    """An answer is cut off after this many tokens."""
    batch_size: Count = 512
    """Sequences that are decoded together, at most."""
    tensor_parallel: Count = 1
    """vllm: ranks that share one engine, which then needs less of each GPU's memory."""
    gpu_memory_share: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """vllm on a GPU: share of its memory for weights and KV cache, while it samples."""
    kv_cache_gb: Positive = 2
    """vllm on a CPU: GiB for the KV cache."""
    placement: Literal["colocated", "separate"] = "colocated"
    """colocated: the engine is in the trainer's process and sleeps while the policy is updated.
    separate: engines are processes of their own, on this machine."""
    engines: Count = 1
    """separate: how many processes; questions are spread over them."""
    engine_gpus: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(strict=False)] = ()
    """separate, on GPUs: which one each engine gets, as torch numbers them; with several ranks,
    first those of rank 0."""
    stuck_after_s: Annotated[float, Field(ge=1, le=86400)] = 600.0
    """separate: an engine is ended, and the run with it, if for so many seconds it has decoded not
    one token and answered nothing; a weight push must be done in this time."""
    overlap: bool = False
    """Sample the next step's votes during this step's update, with the weights from before it.
    The update then corrects for them as for its own clipping: by the ratio to the sampler."""
    resample_rounds: Annotated[int, Field(ge=0, le=1024)] = 0
    """Dynamic sampling (DAPO): as often, at most, ask further questions in place of those whose
    answers are all worth the same, because their votes agree fully or not at all. 0: never."""
    stop_when_decided: bool = False
    """Sample a question's votes in four rounds, and stop after a round in which the winner leads
    by more than the votes still to come: the label is that of all votes, its share is not."""
