"""A run's parts, made one after the other; what can be wrong with them is found here."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from ttrl.credit.credit import Credit
from ttrl.credit.make import make_credit
from ttrl.data.free_prompts import FreePrompts, text_of
from ttrl.data.prompts import refuse_unread_variables
from ttrl.data.questions import QuestionSet, load_questions, overlap
from ttrl.data.sources import ArrivingSource, QuestionList, QuestionSource, make_source
from ttrl.evaluation.evaluation import Evaluation, Measured
from ttrl.evaluation.guards import Guards
from ttrl.learner.backends import make_trained_model
from ttrl.learner.optimizer import learning_rate, steady_rate
from ttrl.learner.policies import FIRST, Policies
from ttrl.learner.trained_model import TrainedModel
from ttrl.models.pretrained import context_room, load_outline, load_tokenizer
from ttrl.posed.phase import PosedPhase
from ttrl.posed.source import SelfPosed
from ttrl.report.display import Display
from ttrl.rewards.labels import LabelSource, Teacher
from ttrl.rewards.scorer import GroupScorer
from ttrl.rollout.ends import refuse_absent_ids, refuse_overflow
from ttrl.rollout.engines.recorded import RecordedEngine
from ttrl.rollout.pool import RolloutPool, make_pool
from ttrl.rollout.sampling import voting
from ttrl.rollout.workflows import Conversation, Workflow, conversation_of, make_workflow
from ttrl.rollout.workflows.checks import agents_of, refuse_unrecorded
from ttrl.run.identity import Identity, model_digests
from ttrl.run.label_sources import label_source
from ttrl.run.planned import planned_memory
from ttrl.run.preflight import refuse_impossible
from ttrl.run.stateful import Clock, Generators, Stateful
from ttrl.settings import Settings
from ttrl.settings.reward import FREE_PASS_LABELS
from ttrl.stream.adaptation import Adaptation
from ttrl.stream.phase import StreamPhase
from ttrl.stream.source import StreamSource
from ttrl.system.gpus import device_name
from ttrl.system.ranks import Ranks
from ttrl.system.rng import make_repeatable
from ttrl.types import AnswerKey, CompletionGroup, Estimate, Question, UserError


@dataclass
class Parts:
    """All that a run is made of."""

    settings: Settings
    display: Display
    ranks: Ranks
    tokenizer: PreTrainedTokenizerBase
    source: QuestionSource
    key: AnswerKey
    """Answer key of the training questions: for metrics only."""
    evaluations: tuple[Evaluation, ...]
    """What is measured before and after; none in a replay, which records no such answers."""
    model: TrainedModel
    """The policy; where each agent has its own, the first agent's."""
    policies: Policies
    """All of them, with what each of them minimizes."""
    digests: dict[str, str]
    """Digests of the model before training, see `model_digests`."""
    labels: LabelSource
    free_prompts: FreePrompts | None
    """For a label source that asks the policy for text."""
    scorer: GroupScorer
    workflow: Workflow
    credit: Credit
    pool: RolloutPool
    sampling_ranks: Ranks
    """The ranks, as the thread that samples talks to them."""
    total: int | None
    """Steps of the run, by which the learning rate goes; None: it goes on until its stream ends."""
    last: int | None
    """The last step that can be made: a record may end before the run does. None: see ``total``."""
    replayed: bool
    """Whether answers are read from a record."""
    guards: Guards
    planned: dict[str, float]
    """GiB of a GPU by phase, see `planned_memory`."""
    clock: Clock
    measured: Measured
    stream: StreamPhase | None
    """What is done with questions that arrive while the run goes on; None: all are there."""
    posed: PosedPhase | None
    """What is done with questions that the policy poses; None: it poses none."""

    def stateful(self) -> dict[str, Stateful]:
        """Return the parts that a checkpoint holds, in the order in which they are put back."""
        named: dict[str, object] = {
            FIRST: self.model,
            "history": self.scorer,
            **self.guards.stateful(),
            "labels": self.labels,
            "measured": self.measured,
            **({} if self.stream is None else {"prequential": self.stream.prequential}),
            "clock": self.clock,
            **self.credit.models,
            "source": self.source,
            "workflow": self.workflow,
            "credit": self.credit,
            "objective": self.policies.objectives[FIRST],
            **self.policies.stateful(),
        }
        return {name: part for name, part in named.items() if isinstance(part, Stateful)}

    def stateful_engine(self) -> dict[str, Stateful]:
        """Return the parts that are put back when the engine has the model's weights."""
        return {"pool": self.pool, "generators": Generators(self.ranks)}

    def identity(self, done: int) -> Identity:
        """Return what tells this run from another, after so many steps."""
        return Identity(
            settings=self.settings,
            estimator=self.scorer.name,
            replayed=self.replayed and (self.last == self.total or done < (self.last or 0)),
            questions=self.source.digest(),
            model=self.digests,
            sizes=self.policies.shard_sizes(("weights",)),
        )

    def arriving(self, folder: Path) -> AbstractContextManager[None]:
        """Let questions arrive in a run's folder, inside the context; nothing if all are there."""
        return nullcontext() if self.stream is None else self.stream.source.running(folder)

    def goes_on(self, done: int) -> bool:
        """Say whether there is a step to make; of a stream, when its questions have come."""
        if self.last is not None and done >= self.last:
            return False
        return self.stream is None or self.stream.goes_on(done + 1)

    def answer(
        self, step: int, groups: Sequence[CompletionGroup], estimates: Sequence[Estimate]
    ) -> dict[str, float]:
        """Let a step's votes answer questions that have arrived; return figures of them."""
        return {} if self.stream is None else self.stream.answer(step, groups, estimates)

    def rate(self, step: int) -> float:
        """Return the policy's learning rate in a step; it begins behind a critic's steps alone."""
        alone, stream = self.settings.critic.warmup_steps, self.settings.stream
        if stream.reset == "per_question":
            visit = 1 + (step - 1) % stream.visits
            return steady_rate(visit, stream.warmup_steps, self.settings.optimizer)
        step = max(1, step - alone)
        if self.total is None:
            return steady_rate(step, stream.warmup_steps, self.settings.optimizer)
        return learning_rate(step, self.total - alone, self.settings.optimizer)


def build(
    settings: Settings, display: Display, scorer: GroupScorer, replay: Path | None, ranks: Ranks
) -> Parts:
    """Read data and model, and start the engine, which is then at the model's weights.

    Raises:
        UserError: for whatever is wrong with them.
    """
    clock = Clock()
    make_repeatable(settings.threads, settings.seed)
    refuse_impossible(settings, replay, ranks)
    workflow = make_workflow(settings)
    conversation = conversation_of(workflow)
    if replay is not None and conversation is None:
        refuse_unrecorded(workflow, settings.rollout.workflow)
    agents = agents_of(conversation, settings)
    tokenizer = load_tokenizer(settings.model)
    source, key, evaluations = load_data(settings, tokenizer, scorer, display, ranks, conversation)
    total = total_steps(settings, source)
    free_prompts = make_free_prompts(settings, tokenizer, source)
    many = f"{ranks.count} ranks, each on " if ranks.count > 1 else ""
    sizes = {e.name: len(e.asked.questions) for e in evaluations}
    display.header(settings, total, sizes, many + device_name(settings.threads))
    model = make_trained_model(settings, ranks)
    policies = Policies.of(settings, model, agents)
    credit = make_credit(settings, model)
    digests = model_digests(model, getattr(torch, settings.model.dtype))
    labels = label_source(settings, key, model, ranks, scorer)
    # Rollouts may go on while the update talks to the other ranks.
    sampling_ranks = ranks.own_group() if settings.rollout.overlap else ranks
    adaptation = None  # keeps the weights as they are before anything is trained
    if settings.stream.reset == "per_question":
        adaptation = Adaptation(settings, model, ranks)
    if replay is None:
        policies.offload()  # vLLM starts only if all of its share of the GPU is free
        for trained in credit.models.values():
            trained.offload()
    pool, recorded = open_pool(settings, tokenizer, sampling_ranks, replay)
    last = total
    if recorded is not None:
        assert total is not None  # a stream is not replayed
        last, evaluations = min(total, recorded), ()
    pool.push_weights(model)
    if agents:
        pool.policies = tuple(policies.models.values())
        display.note(f"a policy per agent: {', '.join(policies.called(agents))}")
    teacher = labels if isinstance(labels, Teacher) else None
    return Parts(
        settings=settings,
        display=display,
        ranks=ranks,
        tokenizer=tokenizer,
        source=source,
        key=key,
        evaluations=evaluations,
        model=model,
        policies=policies,
        digests=digests,
        labels=labels,
        free_prompts=free_prompts,
        scorer=scorer,
        workflow=workflow,
        credit=credit,
        pool=pool,
        sampling_ranks=sampling_ranks,
        total=total,
        last=last,
        replayed=replay is not None,
        guards=Guards(settings, scorer.extract, policies, source.window, display.note),
        planned=planned_memory(settings, ranks.count, display.note),
        clock=clock,
        measured=Measured(),
        stream=StreamPhase(source, model, pool, scorer, display, adaptation, teacher=teacher)
        if isinstance(source, StreamSource)
        else None,
        posed=PosedPhase(source, pool, scorer, sampling_ranks)
        if isinstance(source, SelfPosed)
        else None,
    )


def load_data(
    settings: Settings,
    tokenizer: PreTrainedTokenizerBase,
    scorer: GroupScorer,
    display: Display,
    ranks: Ranks,
    conversation: Conversation | None,
) -> tuple[QuestionSource, AnswerKey, tuple[Evaluation, ...]]:
    """Load what is asked in training, its answer key, and all that is measured."""
    source, train_set = load_source(settings, tokenizer, ranks)
    held_out = QuestionSet((), AnswerKey(), ())
    if settings.data.held_out is not None:
        held_out = load_questions(settings.data.held_out, settings.data.as_held_out(), tokenizer)
    display.rejected((*train_set.rejected, *held_out.rejected))
    for remark in (*train_set.remarks, *held_out.remarks):
        display.note(remark)
    outline = load_outline(settings.model)
    room = context_room(outline)
    trained = train_set.questions
    if isinstance(source, ArrivingSource):
        trained = (*trained, *source.examples(1))
        source.checks += [
            lambda question: refuse_absent_ids((question,), outline, tokenizer),
            lambda question: refuse_overflow((question,), voting(settings), room),
            *([] if conversation is None else [conversation.check]),
        ]
    elif not trained:  # it cannot be listed, so nothing of it has been checked: the first step says
        refuse_unread_variables(settings.data, tokenizer)
        trained = tuple(source.questions(1))
    asked = (*trained, *(q for q in held_out.questions if q.id in held_out.key.answers))
    refuse_absent_ids(asked, outline, tokenizer)
    refuse_overflow(asked, voting(settings), room)
    if conversation is not None:
        conversation.begin(FreePrompts.of(settings, tokenizer))
        for question in asked:
            conversation.check(question)
    if isinstance(source, SelfPosed):
        source.checks.append(partial(refuse_measured, {q.prompt for q in held_out.questions}))
    say_of_questions(source, train_set, held_out, display)
    samples = settings.evaluation.samples
    ks = {1, samples, *([] if conversation is None else [min(samples, conversation.calls)])}
    evaluations = tuple(
        Evaluation(
            settings,
            scorer.extract,
            scorer.grader,
            name,
            questions,
            tuple(sorted(ks)),
            conversation,
        )
        for name, questions in (("train", train_set), ("held_out", held_out))
    )
    return source, train_set.key, evaluations


def open_pool(
    settings: Settings, tokenizer: PreTrainedTokenizerBase, ranks: Ranks, replay: Path | None
) -> tuple[RolloutPool, int | None]:
    """Start the engine, or open the record ``replay``; return its pool, and the recorded steps."""
    if replay is None:
        return make_pool(settings, tokenizer, ranks, load_weights=False), None
    engine = RecordedEngine(replay)
    return RolloutPool(engine, ranks), engine.steps


def load_source(
    settings: Settings, tokenizer: PreTrainedTokenizerBase, ranks: Ranks
) -> tuple[QuestionSource, QuestionSet]:
    """Make the source that ``data.source`` names; return it with what is known before the run."""
    if settings.data.source == "stream":
        stream = StreamSource(settings, tokenizer, ranks)
        return stream, QuestionSet((), stream.key, ())
    if settings.data.source == "self_posed":
        posed = SelfPosed(settings, tokenizer)
        return posed, posed.given
    return make_source(settings, tokenizer)


def say_of_questions(
    source: QuestionSource, train_set: QuestionSet, held_out: QuestionSet, display: Display
) -> None:
    """Note held-out questions that are trained on too, and questions that a pass leaves out."""
    asked = source.all if isinstance(source, QuestionList) else train_set.questions
    if shared := overlap(asked, held_out):
        display.note(
            f"warning: {len(shared)} of {len(held_out.questions)} held-out questions are also "
            f"trained on, for example {shared[0]!r}"
        )
    if isinstance(source, QuestionList) and (left_out := source.left_out):
        display.note(
            f"each pass leaves out {left_out} of {len(source.all)} questions, others each time: "
            f"rollout.questions_per_step = {source.per_step} does not divide them"
        )


def refuse_measured(prompts: Collection[str], question: Question) -> None:
    """Raise a UserError for a question that would be trained on and is measured on."""
    if question.prompt in prompts:
        raise UserError("it is a held-out question")


def total_steps(settings: Settings, source: QuestionSource) -> int | None:
    """Count the steps of the run: all that the source has, unless ``max_steps`` is less.

    Returns:
        The number; None for a stream, which ends when nothing more comes, without ``max_steps``.

    Raises:
        UserError: if neither says where the run ends.
    """
    ends = [steps for steps in (source.total, settings.max_steps) if steps is not None]
    if not ends and isinstance(source, StreamSource):
        return None
    if not ends:
        raise UserError(
            f"data.train = {settings.data.train!r} has no end: set max_steps, by which the "
            "learning rate goes"
        )
    if settings.stopping.by_votes and min(ends) < 2 * source.window:
        raise UserError(
            f"stopping.by_votes = true has nothing to go by: it compares passes of {source.window} "
            f"steps, and the run has {min(ends)}; raise epochs, or unset it"
        )
    if (alone := settings.critic.warmup_steps) >= min(ends):
        raise UserError(
            f"critic.warmup_steps = {alone} leaves none of the run's {min(ends)} steps to the "
            "policy: lower it"
        )
    return min(ends)


def make_free_prompts(
    settings: Settings, tokenizer: PreTrainedTokenizerBase, source: QuestionSource
) -> FreePrompts | None:
    """Make what puts questions in prompts of a label source's own, if there is such a one.

    Raises:
        UserError: for a question that cannot be put there.
    """
    if settings.reward.labels not in FREE_PASS_LABELS:
        return None
    if isinstance(source, ArrivingSource):
        source.checks.append(text_of)
    else:
        for question in source.all if isinstance(source, QuestionList) else source.questions(1):
            text_of(question)
    return FreePrompts.of(settings, tokenizer)
