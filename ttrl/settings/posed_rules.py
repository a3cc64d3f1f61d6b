"""Rules for questions that the policy poses itself: what does not go with them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ttrl.settings.data import NOTHING
from ttrl.settings.posed import PosedSettings
from ttrl.settings.reward import FREE_PASS_LABELS, TOKEN_ADVANTAGES

if TYPE_CHECKING:
    from ttrl.settings.settings import Settings


def posed_rules(settings: Settings) -> Iterator[str]:
    """Yield a message for every rule of ``data.source = "self_posed"`` that is broken."""
    labels, is_posed = settings.reward.labels, settings.data.source == "self_posed"
    if not is_posed:
        if settings.posed != PosedSettings():
            yield f'[posed] needs data.source = "self_posed" (it is "{settings.data.source}")'
        if labels == "checker":
            yield (
                'reward.labels = "checker" needs data.source = "self_posed", whose posed.form '
                "checks the answers"
            )
        if settings.data.train == NOTHING:
            yield (
                f'data.train = "{NOTHING}" needs data.source = "self_posed": else there is '
                "nothing to ask"
            )
        return
    yield from _section_rules(settings.posed)
    yield from _size_rules(settings)
    yield from _other_rules(settings)
    if labels in ("ground_truth", *FREE_PASS_LABELS):
        yield (
            f'reward.labels = "{labels}" needs questions that are there before the step: with '
            'data.source = "self_posed" set it to "votes", "teacher" or "checker"'
        )
    if settings.reward.advantages in TOKEN_ADVANTAGES:
        yield (
            f'reward.advantages = "{settings.reward.advantages}" would have to learn what proposals'
            ' are worth, too: with data.source = "self_posed" compare within the group, or by '
            '"reinforce_pp"'
        )


def _section_rules(posed: PosedSettings) -> Iterator[str]:
    if not posed.lowest_share <= posed.highest_share:
        yield (
            f"posed.lowest_share = {posed.lowest_share:g} is above posed.highest_share = "
            f"{posed.highest_share:g}: no question would be kept; lower it"
        )
    if posed.variants and posed.examples != PosedSettings().examples:
        yield (
            f"posed.examples = {posed.examples} has no meaning with posed.variants = true, which "
            "shows one question: unset one of them"
        )
    for name, needed in (("prompt", ("examples",)), ("variant_prompt", ("question", "variant"))):
        text: str | None = getattr(posed, name)
        for field in needed:
            if text is not None and text.count(f"{{{field}}}") != 1:
                yield (
                    f"posed.{name} has {{{field}}} {text.count(f'{{{field}}}')} times: expected "
                    "it once"
                )


def _size_rules(settings: Settings) -> Iterator[str]:
    posed, per_step = settings.posed, settings.rollout.questions_per_step
    if posed.repeats >= per_step:
        yield (
            f"posed.repeats = {posed.repeats} leaves none of rollout.questions_per_step = "
            f"{per_step} to new questions: lower it"
        )
    if settings.data.train == NOTHING and posed.variants:
        yield (
            f'posed.variants = true with data.train = "{NOTHING}" has no question to vary: name '
            "given ones in data.train"
        )


def _other_rules(settings: Settings) -> Iterator[str]:
    rollout, name = settings.rollout, 'data.source = "self_posed"'
    if settings.max_steps is None:
        yield f"{name} has no end: set max_steps, by which the learning rate goes"
    if settings.epochs != 1:
        yield f"epochs = {settings.epochs} has no meaning with {name}: set epochs = 1"
    for what, is_set in {
        "rollout.overlap = true": rollout.overlap,
        f"rollout.resample_rounds = {rollout.resample_rounds}": rollout.resample_rounds > 0,
        "rollout.stop_when_decided = true": rollout.stop_when_decided,
    }.items():
        if is_set:
            yield (
                f"{what} does not go with {name}, whose proposals earn what all answers of the "
                "step say: unset one of them"
            )
