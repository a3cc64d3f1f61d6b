"""What a run is made of, and what can be wrong with it before it starts."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from ttrl.data.order import QuestionOrder
from ttrl.data.questions import QuestionSet, load_questions, overlap
from ttrl.evaluation.evaluate import Exam
from ttrl.learner.local import LocalPolicy
from ttrl.learner.update import Policy
from ttrl.models.lora import require_peft
from ttrl.models.packed_model import load_policy_model
from ttrl.models.pretrained import context_room, load_bare_outline, load_outline
from ttrl.plan import Machine, plan
from ttrl.report.display import Display
from ttrl.rewards.judge import Judge
from ttrl.rollout.agreement import Agreement
from ttrl.rollout.ends import refuse_absent_ids, refuse_overflow
from ttrl.rollout.engines.vllm_contract import require_vllm
from ttrl.rollout.pool import RolloutPool
from ttrl.rollout.sampling import SamplingParams
from ttrl.settings import Settings
from ttrl.system.gpus import refuse_unseen_gpus
from ttrl.system.launch import launched
from ttrl.system.memory import GIB, memory_suffices
from ttrl.system.ranks import Ranks
from ttrl.system.rng import seed_globals
from ttrl.types import AnswerKey, Question, UserError


def make_policy(settings: Settings, ranks: Ranks) -> Policy:
    """The policy under the backend that the settings name, or else the launch."""
    if backend(settings) == "zero3":
        from ttrl.learner.zero3 import Zero3Policy

        return Zero3Policy.load(settings, ranks)
    own = getattr(torch, settings.model.dtype)
    dtype = torch.float32 if settings.lora.rank is None else own
    liger, longest = settings.memory.liger_kernels, settings.longest
    model = load_policy_model(settings.model, dtype, longest=longest, liger=liger)
    return LocalPolicy(model, settings)


def backend(settings: Settings) -> str:
    """What holds the policy: "local" or "zero3"."""
    return settings.policy.backend or ("zero3" if launched() else "local")


def planned_memory(settings: Settings, ranks: Ranks, display: Display) -> dict[str, float]:
    """What a GPU should hold in rollout and update, in GiB, by `ttrl.plan`.

    Empty without a GPU, and for what cannot be planned: that is no reason not to train.
    """
    if not torch.cuda.is_available():
        return {}
    memory = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory / GIB
    machine = Machine(
        ranks.count,
        memory,
        usable_share=1.0,  # torch says what a program sees
        gpus_per_node=int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
    )
    policy = settings.policy.model_copy(update={"backend": backend(settings)})
    settings = settings.model_copy(update={"policy": policy})
    try:
        found = plan(settings, load_bare_outline(settings.model), machine)
    except UserError as error:
        display.note(f"no memory plan: {error}")
        return {}
    totals = {phase.name: phase.total / GIB for phase in found.phases}
    update = max(totals[name] for name in ("loss", "backward", "optimizer"))
    return {"rollout": totals["rollout"], "update": update}


def refuse_impossible(settings: Settings, replay: Path | None, ranks: Ranks) -> None:
    """Raise a UserError for what would fail only after a model has been loaded."""
    refuse_unseen_gpus()
    shared = settings.rollout.tensor_parallel
    if ranks.count % shared:
        raise UserError(
            f"rollout.tensor_parallel = {shared} does not divide the {ranks.count} ranks of this "
            "run: start a multiple of it, one per GPU (--ranks)"
        )
    zero3 = backend(settings) == "zero3"
    if settings.memory.offload_during_rollout and not (zero3 and torch.cuda.is_available()):
        found = "torch sees no GPU here" if zero3 else 'policy.backend = "local"'
        raise UserError(
            'memory.offload_during_rollout = true: expected policy.backend = "zero3" on a GPU, '
            f"whose memory it is about; {found}"
        )
    if settings.memory.offload_optimizer and not zero3:
        raise UserError(
            'memory.offload_optimizer = true: expected policy.backend = "zero3"; '
            'policy.backend = "local" keeps all in one place'
        )
    if zero3:
        from ttrl.learner.zero3 import require_deepspeed

        require_deepspeed()
    elif ranks.count > 1:
        raise UserError(
            f'policy.backend = "local" holds the policy in one process, but {ranks.count} were '
            'started; set policy.backend = "zero3", or start one'
        )
    if settings.lora.rank is not None:
        require_peft()
    if replay is not None and settings.reward.labels == "teacher":
        raise UserError(
            '--replay: a teacher\'s answers are not recorded (reward.labels = "teacher")'
        )
    if replay is None and settings.rollout.engine == "vllm":
        require_vllm()


def make_repeatable(settings: Settings) -> None:
    """The same settings on the same machine give the same bits.

    Sums in another order differ in the last bit, and one bit can change a sampled token; so the
    number of threads is a setting, and operations without a fixed order are refused by torch. On
    GPUs, where sampling has no others, it warns, except in updates.
    """
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    on_gpu = torch.cuda.is_available()
    if on_gpu:  # read when cuBLAS starts; without it torch refuses every matrix product
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        # What it would fill is written over anyway: a whole layer, each time that one is gathered.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(True, warn_only=on_gpu)
    seed_globals(settings.seed)


def load_data(
    settings: Settings, tokenizer: PreTrainedTokenizerBase, judge: Judge, display: Display
) -> tuple[QuestionSet, tuple[Exam, ...]]:
    """The training questions, and the exams: on them, and on held-out questions (maybe none)."""
    train_set = load_questions(settings.data.train, settings.data, tokenizer)
    held_out = QuestionSet((), AnswerKey(), ())
    if settings.data.held_out is not None:
        held_out = load_questions(settings.data.held_out, settings.data.as_held_out(), tokenizer)
    display.rejected((*train_set.rejected, *held_out.rejected))
    for remark in (*train_set.remarks, *held_out.remarks):
        display.note(remark)
    outline = load_outline(settings.model)
    asked = (*train_set.questions, *(q for q in held_out.questions if q.id in held_out.key.answers))
    refuse_absent_ids(asked, outline, tokenizer)
    refuse_overflow(asked, voting(settings), context_room(outline))
    if shared := overlap(train_set, held_out):
        display.note(
            f"warning: {len(shared)} of {len(held_out.questions)} held-out questions are also "
            f"trained on, for example {shared[0]!r}"
        )
    ks = (1, settings.evaluation.samples)
    return train_set, (
        Exam(settings, judge.extract, judge.grader, "train", train_set, ks),
        Exam(settings, judge.extract, judge.grader, "held_out", held_out, ks),
    )


def total_steps(settings: Settings, order: QuestionOrder) -> int:
    """Steps of the run: whole epochs, unless ``max_steps`` is less."""
    steps = settings.epochs * order.steps_per_epoch
    return steps if settings.max_steps is None else min(steps, settings.max_steps)


def voting(settings: Settings, *stream: int | str) -> SamplingParams:
    """How votes are sampled, with random numbers of their own for each ``stream``."""
    rollout = settings.rollout
    return SamplingParams(
        n=rollout.votes,
        temperature=rollout.temperature,
        max_new_tokens=rollout.max_new_tokens,
        stream=(settings.seed, *stream),
    )


def verify(
    settings: Settings, pool: RolloutPool, policy: Policy, questions: Sequence[Question]
) -> Agreement:
    """How far the pool's engine is from the policy, in what both make of a few short answers.

    Raises:
        UserError: if it computes another model.
    """
    params = replace(voting(settings, "verify"), n=2)
    params = replace(params, max_new_tokens=min(32, params.max_new_tokens))
    with memory_suffices("while engine and policy were compared", "lower rollout.gpu_memory_share"):
        return pool.verify(policy, questions[: max(4, pool.engines)], params, settings.model.dtype)


@contextmanager
def closed_at_the_end(pool: RolloutPool, ranks: Ranks) -> Iterator[None]:
    """Close the pool; not on an error with several ranks.

    vLLM's end is that of the groups of processes that it is in: it waits for the other ranks, and
    they may be waiting for what this one was about to do. It leaves (`ttrl.cli.main`), and its
    launcher ends them.
    """
    try:
        yield
    except BaseException:
        if ranks.count == 1:
            pool.close()
        raise
    pool.close()
