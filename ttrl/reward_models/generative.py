r"""A reward model that writes before it judges, in GenPRM's manner (arXiv 2504.00891).

Of each step it writes an analysis and, if ``reward_model.run_code`` allows, a Python check, which
is run in a locked process and shown to it. Then it opens a box, and the score is P(Yes) / (P(Yes) +
P(No)) of the token that comes next, averaged over ``reward_model.runs`` analyses.

Unlike GenPRM's own program, each step is judged by itself: the message shows the steps before it,
not what was written of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from statistics import fmean
from typing import Self

from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from ttrl.reward_models.folder import WRAP, Folder
from ttrl.reward_models.sandbox import refuse_unlocked, run_python
from ttrl.reward_models.texts import asked_text, control_texts, harmless, steps_of
from ttrl.rollout.engines.transformers_engine import TransformersEngine
from ttrl.rollout.sampling import SamplingParams
from ttrl.settings import Settings
from ttrl.settings.reward_model import RewardModelSettings
from ttrl.types import Question, UserError

ANALYSIS, CHECK, END_OF_CODE = "<analyze>\n", "\n<verify>\n```python\n", "```"
VERDICT = "\n<output>\n**Judgement**: $\\boxed{"
ANSWERS = ("Yes", "No")
TOP_P, TOP_K = 0.95, 20
"""As GenPRM samples its analyses."""


class Generative:
    """Judges steps by analyses that a language model writes of them."""

    def __init__(
        self,
        name: str,
        engine: TransformersEngine,
        tokenizer: PreTrainedTokenizerBase,
        settings: RewardModelSettings,
        seed: int,
    ) -> None:
        """Take over an engine with the judge's weights.

        Raises:
            UserError: for a tokenizer without a chat template, or whose Yes and No begin alike; and
                if programs are to be run where they cannot be locked up.
        """
        if settings.run_code:
            refuse_unlocked()
        firsts = [tokenizer.encode(a, add_special_tokens=False)[0] for a in ANSWERS]
        if tokenizer.chat_template is None or firsts[0] == firsts[1]:
            raise UserError(
                f"reward model {name!r}: expected a tokenizer with a chat template, whose Yes and "
                f"No begin with different tokens; {WRAP}"
            )
        self.step = settings.step or "\n\n"
        self._engine, self._tokenizer, self._settings = engine, tokenizer, settings
        self._firsts, self._seed = firsts, seed
        self._controls = control_texts(tokenizer)

    @classmethod
    def load(cls, folder: Folder, settings: Settings) -> Self:
        """Load the language model."""
        tokenizer, own = folder.tokenizer(), settings.reward_model
        network = folder.network(AutoModelForCausalLM)
        engine = TransformersEngine(network, tokenizer, own.batch_size)
        return cls(folder.name, engine, tokenizer, own, settings.seed)

    def scores(self, question: Question, solutions: Sequence[str]) -> list[tuple[float, ...]]:
        """Judge every step of each solution; equal beginnings are judged once."""
        asked = harmless(asked_text(question), self._controls)
        split = [
            [harmless(step, self._controls) for step in steps_of(solution, self.step)]
            for solution in solutions
        ]
        begun = {tuple(steps[: i + 1]) for steps in split for i in range(len(steps))}
        order = sorted(begun)
        judged = dict(zip(order, self._judge([self._prompt(asked, b) for b in order]), strict=True))
        return [tuple(judged[tuple(s[: i + 1])] for i in range(len(s))) for s in split]

    def _prompt(self, asked: str, steps: Sequence[str]) -> str:
        """Write the message about the last of some steps, and the beginning of the reply."""
        shown = "\n\n".join(f"Step {i}: {step}" for i, step in enumerate(steps, start=1))
        message = (
            f"Here is a question, and a solution up to its step {len(steps)}.\n\nQuestion: {asked}"
            f"\n\n{shown}\n\nIs step {len(steps)} right? Analyze it, check it, then answer in a "
            "box with Yes or No."
        )
        turns = [{"role": "user", "content": message}]
        text = self._tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=True
        )
        return f"{text}{ANALYSIS}"

    def _judge(self, prompts: Sequence[str]) -> list[float]:
        """Compute the mean P(Yes) of each prompt's analyses."""
        settings = self._settings
        limit = settings.analysis_tokens // (2 if settings.run_code else 1)
        written = self._written(prompts, settings.runs, "</analyze>", limit, "analysis")
        if settings.run_code:
            checks = [f"{text}{CHECK}" for text in written]
            codes = self._written(checks, 1, END_OF_CODE, limit, "check")
            written = [self._with_output(c, len(b)) for c, b in zip(codes, checks, strict=True)]
        places = [self._question(f"{text}{VERDICT}") for text in written]
        chances: list[float] = []
        for first in range(0, len(places), settings.batch_size):
            logits_BV = self._engine.next_logits(places[first : first + settings.batch_size])
            chances += logits_BV[:, self._firsts].float().softmax(-1)[:, 0].tolist()
        runs = settings.runs
        return [fmean(chances[i : i + runs]) for i in range(0, len(chances), runs)]

    def _with_output(self, text: str, begin: int) -> str:
        """Run the program that begins there in a text, and add what it wrote."""
        code = text[begin:].partition(END_OF_CODE)[0]
        output = run_python(code, self._settings.code_s, self._settings.code_memory_mb)
        shown = harmless(output.strip(), [*self._controls, END_OF_CODE])
        closed = text if text.endswith(END_OF_CODE) else f"{text}\n{END_OF_CODE}"
        return f"{closed}\n\nOutput:\n```\n{shown}\n```\n</verify>"

    def _written(
        self, texts: Sequence[str], n: int, stop: str, limit: int, purpose: str
    ) -> list[str]:
        """Go on with each text ``n`` times, up to a stop string; text by text, run by run."""
        params = SamplingParams(
            n=n,
            temperature=self._settings.temperature,
            max_new_tokens=max(1, limit),
            top_p=TOP_P,
            top_k=TOP_K,
            stop=(stop,),
            stream=(self._seed, "judge", purpose),
        )
        questions = [self._question(text) for text in texts]
        found = dict(self._engine.sample(questions, params))
        return [
            f"{text}{harmless(c.text, self._controls)}"
            for i, text in enumerate(texts)
            for c in found[i]
        ]

    def _question(self, text: str) -> Question:
        """Return a prompt, whose random numbers depend on its text alone."""
        ids = self._tokenizer.encode(text, add_special_tokens=False)
        digest = hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=16).hexdigest()
        return Question(digest, text, tuple(ids))
