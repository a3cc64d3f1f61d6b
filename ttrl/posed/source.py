"""A source whose questions the policy poses: prompts to the proposer, and what is asked of it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ttrl.data.free_prompts import text_of
from ttrl.data.prompts import ControlTokens, make_question
from ttrl.data.questions import QuestionReader, QuestionSet, load_questions
from ttrl.data.rows import BadRow, Row
from ttrl.data.sources.base import WINDOW, Check, refuse
from ttrl.posed.buffer import Buffer, BufferedQuestion
from ttrl.posed.forms import checker_of, make_form
from ttrl.posed.proposals import Proposal, distinct, is_kept, read_proposals
from ttrl.settings import Settings
from ttrl.settings.data import NOTHING
from ttrl.system.rng import generator
from ttrl.types import AnswerKey, CompletionGroup, Question, UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class SelfPosed:
    """A `QuestionSource` whose steps are known only when the policy has posed their questions.

    They depend on what it has said, and on the buffer, which a checkpoint holds.
    """

    total = None
    window = WINDOW

    def __init__(self, settings: Settings, tokenizer: PreTrainedTokenizerBase) -> None:
        """Read the given questions, if ``data.train`` names some.

        Raises:
            UserError: if they cannot be read, or shown to a proposer; or if nothing checks answers
                where labels are to come from a checker.
        """
        self.settings, self._tokenizer = settings, tokenizer
        self._plain = settings.data.model_copy(update={"suffix": ""})
        self._reader = QuestionReader(settings.data, tokenizer)
        self._control = ControlTokens(self._plain, tokenizer)
        self._form = make_form(settings.posed.form)
        self.checks: list[Check] = []
        """What a question must pass to be asked."""
        self.given = QuestionSet((), AnswerKey(), ())
        """What is there before the run; its key grows, for metrics only."""
        if settings.data.train != NOTHING:
            self.given = load_questions(settings.data.train, settings.data, tokenizer)
        self._answers = dict(self.given.key.answers)
        self.given = QuestionSet(
            self.given.questions,
            AnswerKey(self._answers, self.given.key.levels),
            self.given.rejected,
            self.given.remarks,
        )
        self._answer = checker_of(self._form)
        given = [BufferedQuestion(q.id, self._text_of(q)) for q in self.given.questions]
        self.buffer = Buffer(settings.posed.buffer, given)
        self.proposals: list[Proposal] = []
        """The present step's."""
        self._seen: dict[str, tuple[str, ...]] = {}
        self._asked: list[Question] = []

    def _text_of(self, question: Question) -> str:
        checked = self.settings.reward.labels == "checker"
        text = text_of(question, "be shown to a proposer", "leave it out of data.train")
        if checked and (self._answer is None or self._answer(text) is None):
            raise UserError(
                f'reward.labels = "checker": posed.form = {self.settings.posed.form!r} cannot '
                f'answer question {question.id!r} of data.train; leave it out, or set "votes"'
            )
        return text

    @property
    def key(self) -> AnswerKey:
        """The answers that are known, for metrics only; those of the step are in it."""
        return self.given.key

    # --- What the proposer is asked

    def prompts(self, step: int, attempt: int = 0) -> list[Question]:
        """Return a step's prompts to the proposer; each shows its own part of the buffer."""
        posed, seed = self.settings.posed, self.settings.seed
        found = []
        for i in range(posed.prompts):
            rng = generator(seed, "posed", "examples", step, attempt, i)
            shown = self.buffer.drawn(rng, 1 if posed.variants else posed.examples)
            id = f"proposer-{step}-{attempt}-{i}"
            found.append(self._prompt(id, shown))
        return found

    def _prompt(self, id: str, shown: list[BufferedQuestion]) -> Question:
        """Make a prompt with as many of these questions as there is room for."""
        while True:
            message, longest = self._message(shown), self.settings.data.max_prompt_tokens
            made = make_question(id, message, self._plain, self._tokenizer)
            foreign = self._control.foreign(message, made.prompt_ids)
            if 0 < len(made.prompt_ids) <= longest and foreign is None:
                self._seen[id] = tuple(entry.id for entry in shown)
                return made
            if not shown:
                raise UserError(
                    f"posed.prompt has {len(made.prompt_ids)} tokens, or holds a control token "
                    f"({foreign!r}): expected 1 to data.max_prompt_tokens = {longest}"
                )
            shown = shown[:-1]

    def _message(self, shown: Sequence[BufferedQuestion]) -> str:
        """Put questions in the message; braces in them are text like any other."""
        posed = self.settings.posed
        if not posed.variants or not shown:
            return posed.new_prompt.replace("{examples}", "\n".join(e.text for e in shown)).strip()
        (entry,) = shown
        before, _, after = posed.prompt_of_variants.partition("{question}")
        parts = (part.replace("{variant}", self._variant(entry)) for part in (before, after))
        return entry.text.join(parts).strip()

    def _variant(self, entry: BufferedQuestion) -> str:
        posed = self.settings.posed
        if entry.share is None or is_kept(entry.share, posed):
            return "another variant"
        return "an easier variant" if entry.share < posed.lowest_share else "a harder variant"

    # --- What the solver is asked

    def choose(self, step: int, groups: Sequence[CompletionGroup]) -> None:
        """Read a step's proposals, and choose what is asked: new questions first, then known ones.

        It may find none, see `questions`.
        """
        posed, known = self.settings.posed, [e.text for e in self.buffer.entries.values()]
        self.proposals = read_proposals(groups, self._read, step, posed, known)
        new = [p.question for p in distinct(self.proposals) if p.question is not None]
        rng, wanted = generator(self.settings.seed, "posed", "asked", step), self._per_step
        if len(new) > wanted - posed.repeats:
            picked = sorted(rng.choice(len(new), wanted - posed.repeats, replace=False).tolist())
            new = [new[i] for i in picked]
        kept = [
            e for e in self.buffer.entries.values() if e.share is None or is_kept(e.share, posed)
        ]
        again = self.buffer.drawn(rng, wanted - len(new), kept)
        self._asked = [*new, *(self._question(entry.text, entry.id) for entry in again)]
        if self._answer is not None:
            found = {q.id: self._answer(q.text or "") for q in new}
            self._answers |= {id: answer for id, answer in found.items() if answer is not None}

    @property
    def _per_step(self) -> int:
        return self.settings.rollout.questions_per_step

    def _read(self, proposal: str, id: str) -> Question:
        text = self._form.question(proposal)
        if text is None:
            raise BadRow("no question in it")
        checked = self.settings.reward.labels == "checker"
        if checked and self._answer is not None and self._answer(text) is None:
            raise BadRow("the checker has no answer")
        question = self._question(text, id)
        refuse(question, self.checks)
        return question

    def _question(self, text: str, id: str) -> Question:
        """Make a question of a text, with all checks that one of a file passes."""
        data = self.settings.data
        return self._reader.read(Row(id, {data.prompt_field: text, data.id_field: id})).question

    def questions(self, step: int) -> list[Question]:
        """Return what was chosen for the step; see `choose`."""
        return list(self._asked)

    def further(self, step: int, first: int, count: int) -> list[Question]:
        """Return nothing: all that is worth asking is asked."""
        return []

    def examples(self, count: int) -> list[Question]:
        """Return prompts to the proposer, where some are needed before any question is posed."""
        drawn = [self.buffer.drawn(generator(i), 1) for i in range(count)]
        return [self._prompt(f"example-{i}", shown) for i, shown in enumerate(drawn)]

    def digest(self) -> str:
        """Return a digest of the given questions, and of a prompt: templates are in no setting."""
        asked = [*self.given.questions, self._prompt("digest", [])]
        said = [(question.id, question.prompt_ids) for question in asked]
        return hashlib.sha256(repr(said).encode()).hexdigest()

    # --- What comes of it

    def remember(self, step: int, shares: dict[str, float]) -> None:
        """Put the step's new questions in the buffer, and note how answers to all have agreed."""
        for proposal in distinct(self.proposals):
            question = proposal.question
            if question is not None and question.id in shares:
                seen = self._seen.get(proposal.group.question.id, ())
                self.buffer.add(BufferedQuestion(question.id, question.text or "", step, seen))
        for id, share in shares.items():
            self.buffer.note(id, share)
        self._seen = {}

    def forget(self) -> None:
        """Drop the answers to questions that were posed and are not asked again."""
        kept = self._kept()
        self._answers.clear()  # in place: it is the key's
        self._answers |= kept

    def _kept(self) -> dict[str, str]:
        """Return the known answers to given questions, and to those in the buffer."""
        ids = {question.id for question in self.given.questions} | set(self.buffer.entries)
        return {id: answer for id, answer in self._answers.items() if id in ids}

    def state(self) -> dict[str, Any]:
        """Return the buffer, and the answers that metrics compare its questions with, as JSON."""
        return {"buffer": self.buffer.state(), "answers": self._kept()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned."""
        self.buffer.load_state(state["buffer"])
        self._answers |= state["answers"]
