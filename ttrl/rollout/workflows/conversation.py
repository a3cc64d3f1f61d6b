"""Answers in turns: several agents, all of them the policy, who read what others have said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from ttrl.data.free_prompts import Excerpt, FreePrompts, Request, text_of, without_thinking
from ttrl.data.templates import Part, fill
from ttrl.rollout.sampling import SamplingParams, voting
from ttrl.rollout.workflows.acts import Act, Place, Plan, agents, calls, checked
from ttrl.rollout.workflows.base import Ask, OnGroup
from ttrl.rollout.workflows.talk import Replies, Said, Talk
from ttrl.settings import Settings
from ttrl.settings.agents import ANSWERS, QUESTION
from ttrl.system.rng import generator
from ttrl.types import Completion, CompletionGroup, Question, Turn, UserError


class Conversation:
    """Asks in turns, as a plan says; a subclass gives the plan. See `Workflow`.

    ``rollout.votes`` answers to a question are as many trajectories as there are votes for all the
    answers of one. What comes out of a trajectory is the majority of its last turn.
    """

    def __init__(self, settings: Settings) -> None:
        """Read and check the plan.

        Raises:
            UserError: if it is none, or ``rollout.votes`` do not divide into trajectories.
        """
        self.settings = settings
        self.name = settings.rollout.workflow
        self.plan = checked(self.turns(), self.name)
        self.calls = calls(self.plan)
        """Answers of one trajectory."""
        named = agents(self.plan)
        self.agents = tuple(dict.fromkeys(name for names in named for name in names))
        """The agents by name, in the order in which they first act."""
        own = settings.rollout.policies == "per_agent"
        self._policies = [[self.agents.index(n) if own else None for n in names] for names in named]
        """Which policy acts at each place, see `Turn.policy`."""
        self._prompts: FreePrompts | None = None
        votes = settings.rollout.votes
        if votes % self.calls or votes < 2 * self.calls:
            raise UserError(
                f"rollout.votes = {votes}: expected a multiple of the {self.calls} answers of one "
                f"trajectory of rollout.workflow = {self.name!r}, twice as many at least"
            )

    @property
    def speakers(self) -> tuple[int, ...]:
        """The policies, in the order in which they are asked; the first one alone if it plays all.

        Example: a debate of two agents, each with its own, and two rounds has (0, 1, 1, 0).
        """
        order = [policy for t in range(len(self.plan)) for policy in self._speaking(t)]
        return tuple(policy for policy in order if policy is not None) or (0,)

    def turns(self) -> Plan:
        """Return who acts in which turn, and what each sees.

        Raises:
            UserError: if a subclass gives none.
        """
        raise UserError(
            f"rollout.workflow = {self.name!r} is a Conversation without a plan: define turns(), "
            "which returns one"
        )

    def begin(self, prompts: FreePrompts) -> None:
        """Take what puts model output into prompts."""
        self._prompts = prompts

    def check(self, question: Question) -> None:
        """Raise a UserError if a later turn has no room for a question, even without answers."""
        silent = {(t, a): "" for t, acts in enumerate(self.plan) for a in range(len(acts))}
        different = {(act.template, act.answers): act for acts in self.plan for act in acts}
        for act in different.values():
            if act.template is not None:
                shown = {place: silent[place] for place in act.sees}
                self._prompt(question, act, list(act.sees), shown, question.id)

    def run(
        self, ask: Ask, questions: Sequence[Question], step: int, on_group: OnGroup
    ) -> list[CompletionGroup]:
        """Return one group per question, trajectory by trajectory; see `Workflow.run`."""
        params = voting(self.settings, "rollout", step)
        return self.converse(ask, questions, params, on_group)

    def converse(
        self, ask: Ask, questions: Sequence[Question], params: SamplingParams, on_group: OnGroup
    ) -> list[CompletionGroup]:
        """Return ``params.n`` answers to each question, of as many trajectories as that makes.

        The answers of the first turn are those of a single one with the same random numbers, where
        one policy plays all agents. Where each has its own, an ask is of one policy.
        """
        talk = Talk.of(ask, questions, params, params.n // self.calls)
        for t, acts in enumerate(self.plan):
            talk.here.clear()
            plain = [a for a, act in enumerate(acts) if t == 0 and act.template is None]
            replies: Replies = {}
            for policy in self._speaking(t):
                own = [a for a in range(len(acts)) if self._policies[t][a] == policy]
                if alone := [a for a in own if a in plain]:
                    replies |= self._ask_alone(talk, alone)
                if later := [a for a in own if a not in plain]:
                    replies |= self._ask_later(talk, t, later)
            for a in [*plain, *(a for a in range(len(acts)) if a not in plain)]:
                talk.hear((t, a), replies[a])
        groups = talk.groups()
        for group in groups:
            last = group.prompt_of(len(group.completions) - 1)
            if last.id in talk.here:
                on_group(group)
        return groups

    def _speaking(self, t: int) -> list[int | None]:
        """Return the policies that act in a turn, in the order in which they are asked.

        Every second turn has the reverse order: it begins with the one that the engine still holds.
        """
        order = list(dict.fromkeys(self._policies[t]))
        return order[::-1] if t % 2 else order

    def _ask_alone(self, talk: Talk, agents: Sequence[int]) -> Replies:
        """Let agents of one policy answer the questions by themselves, as the first to speak."""
        policy, params = self._policies[0][agents[0]], talk.params
        own = replace(params, n=len(agents) * talk.count)
        if policy is not None:
            own = replace(own, policy=policy, stream=(*params.stream, "policy", policy))
        groups = talk.asked(talk.questions, own)

        def reply(group: CompletionGroup, trajectory: int, k: int) -> Completion:
            turn = Turn(0, agents[k], trajectory, self.plan[0][agents[k]].role, policy=policy)
            return replace(group.completions[trajectory * len(agents) + k], turn=turn)

        return {
            a: [[reply(group, j, k) for j in range(talk.count)] for group in groups]
            for k, a in enumerate(agents)
        }

    def _ask_later(self, talk: Talk, t: int, agents: Sequence[int]) -> Replies:
        """Let agents of one policy answer, in a turn, what they read of the turns before."""
        stream = (*talk.params.stream, "turn", t)
        turns = [
            self._turn(question, (t, a), trajectory, said, stream)
            for question, of in zip(talk.questions, talk.said, strict=True)
            for trajectory, said in enumerate(of)
            for a in agents
        ]
        prompts = [turn.asked for turn in turns if turn.asked is not None]
        policy = self._policies[t][agents[0]] or 0
        groups = talk.asked(prompts, replace(talk.params, n=1, stream=stream, policy=policy))
        found: Replies = {a: [] for a in agents}
        for turn, group in zip(turns, groups, strict=True):
            (completion,) = group.completions
            if turn.trajectory == 0:
                found[turn.agent].append([])
            found[turn.agent][-1].append(replace(completion, turn=turn))
        return found

    def _turn(
        self,
        question: Question,
        place: Place,
        trajectory: int,
        said: Said,
        stream: tuple[int | str, ...],
    ) -> Turn:
        """Make the prompt of an agent in a turn of a trajectory."""
        t, a = place
        act, policy = self.plan[t][a], self._policies[t][a]
        id = f"{question.id}/{t}/{a}/{trajectory}"
        if act.template is None:
            return Turn(t, a, trajectory, act.role, replace(question, id=id), policy=policy)
        rng = generator(*stream, "shown", question.id, a, trajectory)
        seen = [act.sees[i] for i in rng.permutation(len(act.sees))]
        if act.others is not None:
            others = [p for p in seen if p[1] != a][: act.others]
            seen = [p for p in seen if p[1] == a or p in others]
        texts = {p: without_thinking(said[p].text) for p in seen}
        prompt, cut = self._prompt(question, act, seen, texts, id)
        return Turn(t, a, trajectory, act.role, prompt, cut, policy)

    def _prompt(
        self,
        question: Question,
        act: Act,
        seen: Sequence[Place],
        texts: Mapping[Place, str],
        id: str,
    ) -> tuple[Question, int]:
        """Fill in a template; return the prompt, and how many tokens of answers were cut.

        Answers that spell control tokens in a way that cannot be taken apart are left out, as if
        there were no room for them.
        """
        prompts, tokens = self._prompts, self.settings.rollout.max_new_tokens
        assert prompts is not None and act.template is not None  # `ttrl.build` begins it
        filled = self._parts(question, act, seen, texts)
        made = prompts.fitted(Request(question, filled), id, tokens, answers=act.answers)
        if made is not None:
            return made.prompt, made.cut
        silent = self._parts(question, act, seen, dict.fromkeys(texts, ""))
        made = prompts.fitted(Request(question, silent), id, tokens, answers=act.answers)
        if made is None:
            raise UserError(
                f"question {question.id!r}: the prompt of the {act.role!r} of rollout.workflow = "
                f"{self.name!r} is too long even without the answers that it shows: raise "
                "data.max_prompt_tokens, shorten the templates of [agents], or leave the question "
                "out"
            )
        return made.prompt, sum(prompts.tokens(texts[place]) for place in seen)

    def _parts(
        self, question: Question, act: Act, seen: Sequence[Place], texts: Mapping[Place, str]
    ) -> list[Part]:
        """Return the parts of a message: what was said in excerpts, which may be cut."""
        listed: list[Part] = []
        roles: dict[str, list[Part]] = {a.role: [] for acts in self.plan for a in acts}
        for number, place in enumerate(seen, start=1):
            shown: dict[str, list[Part]] = {
                "number": [str(number)],
                "answer": [Excerpt(texts[place])],
            }
            listed += fill(self.settings.agents.shown_as, shown)
        for place in sorted(seen):  # by turn, so that a critique follows what it is about
            role = roles[self.plan[place[0]][place[1]].role]
            role += ["\n\n"] if role else []
            role.append(Excerpt(texts[place]))
        text: list[Part] = [text_of(question)]
        return fill(act.template or "", {QUESTION: text, ANSWERS: listed, **roles})
