"""The section [data]: questions, and how they are put to the model."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field

from ttrl.settings.section import Positive, Section, Share

NOTHING = "nothing"
"""``data.train`` of a run that begins without questions."""

HeldOutKey = Literal[
    "split", "subset", "revision", "prompt_field", "answer_field", "id_field", "level_field"
]


class DataSettings(Section):
    """Questions and how they are put to the model."""

    source: Literal["list", "stream", "self_posed"] = "list"
    """list: all questions are there when the run begins. stream: they arrive while it goes on;
    ``train`` is then a .jsonl file that grows, a folder into which such files are moved, or "-",
    standard input. See [stream]. self_posed: the policy poses them itself; ``train`` is then
    "nothing", or names given questions that it begins with. See [posed]."""
    train: str
    """Questions to train on, labels never read: a .jsonl, .json, .parquet, .csv, .tsv or .txt file,
    "hub:OWNER/NAME", "arithmetic:train", or "arithmetic:stream", which has no end. In a recipe, a
    file beside it comes first."""
    ids: Annotated[tuple[str, ...], Field(strict=False)] = ()
    """Train on these questions of ``train`` only, by their ids; all of it is measured, and apart
    from that the others. Empty: on all. `ttrl choose` picks them by a run's votes."""
    held_out: str | None = None
    """Questions to measure on but never train on; same forms as ``train``, but no
    stream."""
    for_held_out: dict[HeldOutKey, str] = Field(default_factory=dict)
    """Which of split, subset, revision and the names of fields are others for ``held_out``, for
    example ``prompt_field = "question"``."""
    split: str = "train"
    """Split of a hub data set."""
    subset: str | None = None
    """Configuration of a hub data set."""
    revision: str | None = None
    """Commit, tag or branch of a hub data set."""
    prompt_field: str = "prompt"
    """Name of the field that holds the question, as text or as a list of messages. Of this field
    and the next ones: "a.b" is the field b inside a, "messages.-1.content" one in a list's last."""
    answer_field: str = "answer"
    """Name of the field that holds the reference answer, if there is one, or a solution with the
    answer in \\boxed{...} or behind ####."""
    id_field: str = "id"
    """Name of the field that holds the id; a row without it is named by its position."""
    level_field: str = "level"
    """Name of the field that holds the difficulty level, if there is one."""
    chat_template: bool = True
    """Put the question through the tokenizer's chat template."""
    chat_template_kwargs: dict[str, bool | int | float | str] = Field(default_factory=dict)
    """Variables for the chat template, for example ``enable_thinking = false``."""
    system_prompt: str | None = None
    """A system message for questions without one of their own; None leaves it to the chat
    template."""
    suffix: str = ""
    """Appended to every question."""
    max_prompt_tokens: Positive = 1024
    """Longer prompts are rejected."""
    max_rejected_share: Share = 0.1
    """The run stops if more rows than this share are rejected."""

    def as_held_out(self) -> Self:
        """Return the settings for reading ``held_out``."""
        return self.model_copy(update={str(k): v for k, v in self.for_held_out.items()})
