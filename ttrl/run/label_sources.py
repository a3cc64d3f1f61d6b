"""The label source that ``reward.labels`` names."""

from __future__ import annotations

from ttrl.learner.trained_model import TrainedModel
from ttrl.posed.forms import checker_of, make_form
from ttrl.rewards.harmony import SelfHarmony
from ttrl.rewards.labels import CheckedAnswers, LabelSource, OwnVotes, ReferenceAnswers, Teacher
from ttrl.rewards.reflection import SelfReflection
from ttrl.rewards.scorer import GroupScorer
from ttrl.settings import Settings
from ttrl.system.ranks import Ranks
from ttrl.types import AnswerKey, UserError


def label_source(
    settings: Settings, key: AnswerKey, model: TrainedModel, ranks: Ranks, scorer: GroupScorer
) -> LabelSource:
    """Make what ``reward.labels`` asks for; a teacher starts from the model's present weights.

    Raises:
        UserError: if there is no checker, or no reference answer, where that is asked for.
    """
    match settings.reward.labels:
        case "votes":
            return OwnVotes()
        case "teacher":
            return Teacher(model, settings.reward.teacher_decay, ranks)
        case "harmony":
            return SelfHarmony(settings, scorer.extract, scorer.grader)
        case "reflection":
            return SelfReflection(settings, scorer.extract, scorer.grader)
        case "checker":
            answer = checker_of(make_form(settings.posed.form))
            if answer is None:
                raise UserError(
                    f'reward.labels = "checker": posed.form = {settings.posed.form!r} has no '
                    'method answer, which would check the solver; set "votes", or another form'
                )
            return CheckedAnswers(answer)
        case "ground_truth":
            if not key.answers:
                raise UserError(
                    'reward.labels = "ground_truth": data.train = '
                    f"{settings.data.train!r} has no reference answers"
                )
            return ReferenceAnswers(key)
