"""What a run takes of a GPU's memory and gives back, in the order in which it does so.

    play(job, order(job)) -> phases

`order` names what happens, from loading to the second step. The tests compare it with what a real
`ttrl.trainer.Trainer` does, event by event; and they play it for the recipe of every machine. A
phase that needs more than there is, or a vLLM that does not find its share free, is a run that
stops there: `ttrl plan` says so before it starts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain

from ttrl.plan import memory, per_agent, reward_model
from ttrl.plan.machine import GIB
from ttrl.plan.memory import Job
from ttrl.plan.second_model import LEAVES, NAMES, leaves, second_model
from ttrl.plan.second_model import loss as second_loss
from ttrl.plan.second_model import states as second_states

PUSH = ("wake weights", "push", "wake cache")
"""New weights into a vLLM that sleeps."""
START = ("load", "offload", "start", "rollout", "sleep", *PUSH)
"""vLLM samples one token when it has started."""
RESUME = ("sleep", "reload", "offload", *PUSH)
VERIFY = ("rollout", "verify")
MEASURE = ("rollout",)
TEACHER = ("sleep", *PUSH, "rollout", "sleep", *PUSH)
"""A teacher's weights are pushed and asked, and then the policy's again."""
STEP = ("rollout", "sleep", "reload", "update", "offload", *PUSH)
CREDIT_STEP = ("rollout", "sleep", "credit", "reload", "update", "offload", *PUSH)
"""With a critic or a reward model, which is trained while the policy's states are away."""
AGENTS = ("agents", "offload")
"""The further policies, where each agent has its own: trained one by one, when the first is."""

JUDGED = ("rollout", "judge")
"""Where a reward model judges answers, while others are still being sampled."""

PEAKS = (
    "load", "start", "push", "verify", "rollout", "judge", "credit", "loss", "backward",
    "optimizer",
)  # fmt: skip
"""Phases at which memory can be highest; between them there is never more."""


def order(job: Job, *, resumed: bool = False) -> tuple[str, ...]:
    """List what a run does up to the end of its second step, as far as GPU memory sees it."""
    settings = job.settings
    if job.turns.further:
        return (*START, *_order_of_agents(job, resumed=resumed))
    step = CREDIT_STEP if settings.reward.advantages in NAMES else STEP
    if reward_model.judge_of(settings) is not None:
        step = (*JUDGED, *step[1:])
    if settings.reward.labels == "teacher":
        step = (*TEACHER, *step)
    begun = (*RESUME, *VERIFY) if resumed else (*VERIFY, *MEASURE)
    return (*START, *begun, *step, *step)


def _order_of_agents(job: Job, *, resumed: bool) -> tuple[str, ...]:
    """List what a run does after its start where the engine takes the weights of who speaks."""
    speakers = job.turns.speakers

    def spoken(held: int) -> tuple[str, ...]:
        before = zip([held, *speakers], speakers, strict=False)
        pushed = [("sleep", *PUSH) if one != other else () for one, other in before]
        return tuple(chain.from_iterable((*push, "rollout") for push in pushed))

    judge = () if reward_model.judge_of(job.settings) is None else JUDGED[1:]
    update = (*judge, *STEP[1 : STEP.index("offload") + 1], *AGENTS, *PUSH)
    begun = (*RESUME, *VERIFY) if resumed else (*VERIFY, *MEASURE, *spoken(0))
    first = 0 if resumed else speakers[-1]
    return (*begun, *spoken(first), *update, *spoken(0), *update)


@dataclass(frozen=True)
class Phase:
    """A moment of a run, and what one GPU then holds."""

    name: str
    items: Mapping[str, int]
    """Bytes by what they are for."""
    wanted: int = 0
    """Bytes that must be free besides."""

    @property
    def total(self) -> int:
        """Bytes in all."""
        return sum(self.items.values())


def play(job: Job, events: Iterable[str]) -> list[Phase]:
    """Let these events happen on a GPU, in this order; return what it held at each of them."""
    card = _Card(job)
    for event in events:
        _EVENTS[event](card)
    return card.phases


def phases(job: Job) -> tuple[Phase, ...]:
    """Return the moments at which memory can peak, each where it is largest."""
    largest: dict[str, Phase] = {}
    for phase in _whole(job):
        if phase.name in PEAKS and phase.total > largest.get(phase.name, Phase("", {})).total:
            largest[phase.name] = phase
    return tuple(largest[name] for name in PEAKS if name in largest)


def lacking(job: Job, played: Iterable[Phase] | None = None) -> Iterator[str]:
    """Say of each phase, once, that it asks for more than there is.

    The phases are those of the whole run, or of what was played.
    """
    usable, said = job.machine.usable, set()
    for phase in _whole(job) if played is None else played:
        free = usable - phase.total
        if free >= phase.wanted or phase.name in said:
            continue
        said.add(phase.name)
        if phase.wanted and free >= 0:
            yield (
                f"{phase.name}: vLLM wants {phase.wanted / GIB:.1f} GiB free "
                f"(rollout.gpu_memory_share = {job.settings.rollout.gpu_memory_share}), and "
                f"{free / GIB:.1f} are"
            )
        else:
            yield f"{phase.name} needs {phase.total / GIB:.1f} of {usable / GIB:.1f} GiB"


def spare(job: Job) -> int:
    """Count the bytes by which vLLM's share could grow: what is always free beside it."""
    usable = job.machine.usable
    beside = (p for p in _whole(job) if p.wanted or "KV cache" in p.items)
    return min(usable - p.total - p.wanted for p in beside)


def _whole(job: Job) -> list[Phase]:
    """Play all of a run that is resumed, which does what any run does."""
    return play(job, order(job, resumed=True))


class _Card:
    """The account of one GPU's memory."""

    def __init__(self, job: Job) -> None:
        """Begin with nothing loaded."""
        self.job = job
        self.held = {"CUDA, NCCL": job.machine.context}
        self.away: dict[str, int] = {}
        """Bytes of the policy on the host, by what they are for."""
        self.second_away: dict[str, int] = {}
        """The same of the second model."""
        self.phases: list[Phase] = []

    def take(self, items: Mapping[str, int], *names: str) -> None:
        """Hold from now on what is named, or all of it; what is held already stays the same."""
        self.held |= {name: items[name] for name in names or items if items.get(name)}

    def give(self, *names: str) -> dict[str, int]:
        """Hold what is named no longer; return it."""
        return {name: self.held.pop(name) for name in names if name in self.held}

    def note(self, name: str, passing: Mapping[str, int] | None = None, wanted: int = 0) -> None:
        """Write down what is held, and what is there only now."""
        passing = {key: size for key, size in (passing or {}).items() if size}
        loose = sum(passing.values()) + self.held.get("reference model", 0)
        lost = math.ceil(self.job.machine.fragmentation * loose)
        items = {**self.held, **passing, "fragmentation": lost}
        self.phases.append(Phase(name, {k: v for k, v in items.items() if v}, wanted))


def _load(card: _Card) -> None:
    """Load the reference first: while it is loaded, nothing else is there."""
    states, transit = memory.states(card.job), memory.loading(card.job)
    card.take(states, "reference model")
    card.note("load", transit)
    card.take(states, "parameters")
    if card.job.zero3:  # its buffers for gradients are there from the beginning
        card.take(states, "gradients", "master weights")
    card.note("load", transit)
    if second := second_model(card.job):
        own = second_states(card.job)
        card.take(own, f"{second} parameters")
        if card.job.zero3:
            card.take(own, f"{second} gradients", f"{second} master weights")
        card.note("load", transit)
    _load_agents(card, transit)


def _load_agents(card: _Card, transit: Mapping[str, int]) -> None:
    """Load the further policies, each when the one before has made room."""
    job, stays = card.job, not card.job.settings.memory.offload_during_rollout
    own = per_agent.states(job)
    for number in range(1, 1 + job.turns.further):
        _offload(card)
        card.take(per_agent.named(own, number, "parameters"))
        if job.zero3:
            count = number if stays else 1
            card.take(per_agent.named(own, count, "gradients", "master weights"))
        card.note("load", transit)


def _offload(card: _Card) -> None:
    """Move what phase offload moves; in one process the gradients are forgotten."""
    if not card.job.zero3:
        card.give("gradients")
    if card.job.settings.memory.offload_during_rollout:
        card.away |= card.give(*LEAVES)
        card.second_away |= card.give(*leaves(card.job))
        card.give(*map(per_agent.label, LEAVES))


def _reload(card: _Card) -> None:
    card.take(card.away)
    card.away = {}
    card.note("reload")


def _start(card: _Card) -> None:
    """Start vLLM, which refuses unless its whole share is free."""
    job = card.job
    if job.vllm:
        card.note("start", wanted=memory.engine_share(job))
    card.take({"vLLM itself": memory.engine_overhead(job), **memory.engine_weights(job)})
    _wake_cache(card)
    card.note("start", _sampling(job))


def _sleep(card: _Card) -> None:
    if card.job.vllm:
        card.give("engine weights", "KV cache")


def _wake_weights(card: _Card) -> None:
    card.take(memory.engine_weights(card.job))
    card.note("wake weights")


def _push(card: _Card) -> None:
    card.note("push", memory.push(card.job))


def _wake_cache(card: _Card) -> None:
    if card.job.vllm:
        card.take({"KV cache": memory.kv_cache(card.job)})
        card.note("wake cache")


def _verify(card: _Card) -> None:
    card.note("verify", memory.verified(card.job))


def _rollout(card: _Card) -> None:
    card.note("rollout", _sampling(card.job))


def _judge(card: _Card) -> None:
    """Read answers by a reward model, which is loaded when the first are there, and stays."""
    card.take(reward_model.weights(card.job))
    card.note("judge", _sampling(card.job) | reward_model.reading(card.job))


def _sampling(job: Job) -> dict[str, int]:
    """Count the bytes that an engine needs for as long as it samples."""
    items = {"prefill, sampler": memory.prefill(job)}
    return items if job.vllm else items | {"KV cache": memory.kv_cache(job)}


def _credit(card: _Card) -> None:
    """Train the second model; what the policy has besides its weights is away meanwhile."""
    job, own = card.job, second_states(card.job)
    card.take(card.second_away)
    card.take(own, *(item for item in own if item.endswith("gradients")))
    forward = memory.activations(job) | memory.gathered(job)
    copies = memory.weight_copies(job, in_backward=False)
    card.note("credit", forward | second_loss(job) | copies)
    copies = memory.weight_copies(job, in_backward=True)
    card.note("credit", forward | memory.recomputed(job) | copies)
    card.take(own, *(item for item in own if item.endswith("moments")))
    card.note("credit", memory.optimizer_temporaries(job))
    if not job.zero3:
        card.give(*(item for item in own if item.endswith("gradients")))
    if job.settings.memory.offload_during_rollout:
        card.second_away = card.give(*leaves(job))


def _update(card: _Card) -> None:
    """Train: gradients stay until the policy makes room, moments for ever."""
    states = memory.states(card.job)
    card.take(states, "gradients")
    _steps(card, {"moments": states.get("moments", 0)})


def _agents(card: _Card) -> None:
    """Train the further policies one by one, while the first has made room, if it does so."""
    job, own = card.job, per_agent.states(card.job)
    stays = not job.settings.memory.offload_during_rollout
    count = job.turns.further if stays else 1
    if job.zero3:
        card.take(per_agent.named(own, count, "gradients", "master weights"))
    else:
        card.take(per_agent.named(own, 1, "gradients"))
    _steps(card, per_agent.named(own, count, "moments"))
    if not job.zero3:
        card.give(per_agent.label("gradients"))


def _steps(card: _Card, moments: Mapping[str, int]) -> None:
    """Take optimizer steps of a policy, with ``moments`` that then stay."""
    job = card.job
    forward = memory.activations(job) | memory.gathered(job)
    copies = memory.weight_copies(job, in_backward=False)
    card.note("loss", forward | memory.loss(job) | copies)
    copies = memory.weight_copies(job, in_backward=True)
    card.note("backward", forward | memory.recomputed(job) | copies)
    card.take(moments)
    card.note("optimizer", memory.optimizer_temporaries(job))


_EVENTS: dict[str, Callable[[_Card], None]] = {
    "load": _load,
    "offload": _offload,
    "start": _start,
    "sleep": _sleep,
    "wake weights": _wake_weights,
    "push": _push,
    "wake cache": _wake_cache,
    "verify": _verify,
    "rollout": _rollout,
    "judge": _judge,
    "credit": _credit,
    "reload": _reload,
    "update": _update,
    "agents": _agents,
}
