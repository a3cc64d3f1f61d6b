"""The model card of an exported model: what it is, where it is from, and what was measured."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from ttrl.report.display import is_rate
from ttrl.report.evaluation_tables import gains_table, scores_table
from ttrl.report.results import EvaluationResult
from ttrl.report.run_record import RunRecord
from ttrl.report.tables import TextTable, escaped
from ttrl.report.verdict import verdict
from ttrl.run.checkpoint import Checkpoint
from ttrl.run.identity import MAY_DIFFER, run_digest
from ttrl.settings import Settings
from ttrl.types import UserError

CARD = "README.md"
RUN_KEY = "ttrl_run"
"""Field of the front matter that says which run a model is of, see `run_digest`."""
FILES = ("data.held_out", "answers.extract", "reward.estimator", "rollout.workflow")
"""Settings whose values may be a path, or begin with one."""
EXTRA = "reward.extra."
"""What settings begin with whose names may be a path."""
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
"""OWNER/NAME."""

NOT_TESTED = """\
Nothing but what stands above was measured: no other tasks, languages or lengths, no dialogue, no
harmful or biased output, no robustness. What training rewards can be wrong, a majority above all,
and it makes answers less diverse. The license is that of the base model."""

LOADING = """\
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

where = "."  # this folder, or its name on the hub
model = AutoModelForCausalLM.from_pretrained(where)
tokenizer = AutoTokenizer.from_pretrained(where)
```"""

CITATION = """\
The method is that of [TTRL: Test-Time Reinforcement Learning](https://arxiv.org/abs/2504.16084).

```bibtex
@article{zuo2025ttrl,
  title = {{TTRL}: Test-Time Reinforcement Learning},
  author = {Zuo, Yuxin and others},
  journal = {arXiv preprint arXiv:2504.16084},
  year = {2025}
}
```"""


def model_card(run: RunRecord, checkpoint: Checkpoint, dtype: str, agent: int = 0) -> str:
    """Write the card of a checkpoint's model, Markdown with a front matter in YAML.

    It holds names of files, never their folders, and no question, answer or text of the model.

    Args:
        run: of the checkpoint, finished or not.
        checkpoint: what is exported.
        dtype: of the exported weights.
        agent: whose policy it is, where each has its own; only the first one's was measured.
    """
    with checkpoint.errors_as_user_error():
        state = checkpoint.state()
        digest, versions = run_digest(state["identity"]), dict(state.get("versions", {}))
    digest += f"/agent_{agent}" if agent else ""  # another model: not a later state of the first
    settings = run.settings
    base, data = _base(settings), _data(settings.data.train)
    before, after = (
        {r.data: r for r in run.evaluations() if r.step == at and not agent}
        for at in (0, checkpoint.step)
    )
    names = {"train": f"{data} (trained on)"}
    if settings.data.held_out is not None:
        names["held_out"] = f"{_data(settings.data.held_out)} (held out)"
    body = (
        f"# {escaped(settings.name)}, step {checkpoint.step}{f', agent {agent}' * bool(agent)}",
        f"{escaped(base)}, trained by test-time reinforcement learning "
        f"([TTRL](https://arxiv.org/abs/2504.16084)) on {_asked(run, checkpoint.step)} of "
        f"{escaped(data)}, in {checkpoint.step} steps. "
        f"{_labels(settings)}{_agents(settings, agent)}",
        "## What came out",
        *_results(before, after, names),
        _outcome(run, checkpoint.step),
        "## How it was trained",
        *(table.markdown() for table in _recipe(settings, versions, dtype)),
        "## What it was not tested for",
        NOT_TESTED,
        "## Loading it",
        LOADING,
        "## Citation",
        CITATION,
    )
    head = _front_matter(settings, digest, after, names)
    return f"---\n{head}\n---\n\n" + "\n\n".join(part.strip() for part in body) + "\n"


def _asked(run: RunRecord, step: int) -> str:
    """Count the questions that were asked until then, if all their answers are still there."""
    steps = [sampled for sampled in run.sampled if sampled <= step]
    if len(steps) < step:
        return "questions"
    try:
        count = len({group.question for at in steps for group in run.groups(at)})
    except UserError:  # a damaged file of answers is no reason to have no model
        return "questions"
    return f"{count} question{'s' * (count != 1)}"


def _front_matter(
    settings: Settings, run: str, after: Mapping[str, EvaluationResult], names: Mapping[str, str]
) -> str:
    on_hub = settings.data.train.removeprefix("hub:")
    base = settings.model.path
    found = [
        EvalResult(
            task_type="text-generation",
            dataset_type=re.sub(r"\W+", "-", names[data]).strip("-").lower(),
            dataset_name=names[data],
            metric_type=name,
            metric_value=round(100 * result.mean(name).value, 2),
            metric_name=f"{name} in %",
        )
        for data, result in after.items()
        for name in result.names
        if is_rate(name)
    ]
    head = ModelCardData(
        base_model=base if HUB_NAME.fullmatch(base) and not Path(base).exists() else None,
        datasets=[on_hub] if on_hub != settings.data.train else None,
        eval_results=found or None,
        library_name="transformers",
        model_name=settings.name,
        pipeline_tag="text-generation",
        tags=["ttrl", "test-time-reinforcement-learning", _algorithm(settings)],
    )
    head[RUN_KEY] = run
    return head.to_yaml()


def _results(
    before: Mapping[str, EvaluationResult],
    after: Mapping[str, EvaluationResult],
    names: Mapping[str, str],
) -> Iterator[str]:
    """Yield a table for each set of questions that this very model was measured on."""
    for data, result in after.items():
        new = replace(result, model="after", data=names[data])
        if data in before:
            old = replace(before[data], model="before", data=names[data])
            yield gains_table(old, new).markdown()
        else:
            yield scores_table(new).markdown()
    if not after:
        yield "This model was not measured."


def _outcome(run: RunRecord, step: int) -> str:
    """Say how the run went, whose end may be another model."""
    last = len(run.steps)
    of_all = (
        ""
        if last == step
        else f"The run went on to step {last}, another model; this is of the whole. "
    )
    how = "" if run.state in ("finished", "running") else f" The run is {run.state}."
    return f"{of_all}Verdict: {escaped(str(verdict(run)))}.{how}"


def _labels(settings: Settings) -> str:
    """Say whom answers had to agree with."""
    kinds = {
        "votes": "the majority of its own answers",
        "teacher": "the majority of a teacher's answers, the base model or an average of its past",
        "harmony": "the answer that question and paraphrase agree on (Self-Harmony)",
        "reflection": "the answer that it picked from its own (SR-TTRL)",
    }
    if settings.reward.labels == "ground_truth":
        return "**It was trained with the reference answers**, as an upper bound."
    return (
        f"The label of a question was {kinds[settings.reward.labels]}: no reference answer was "
        "used in training."
    )


def _agents(settings: Settings, agent: int) -> str:
    """Say whose policy it is, if each agent of the run has its own."""
    if settings.rollout.policies == "shared":
        return ""
    return (
        f" Several agents were trained together, each with a policy of its own: this is agent "
        f"{agent}'s, counted from 0, and `outcome` is what all of them reach together."
    )


def _recipe(settings: Settings, versions: Mapping[str, str], dtype: str) -> Iterator[TextTable]:
    """Yield what decided the run: in short, its settings, and the versions it was made with."""
    rollout, reward = settings.rollout, settings.reward
    yield TextTable(
        "In short",
        ("", ""),
        (
            ("base model", _base(settings)),
            ("its revision", settings.model.revision or "not pinned"),
            ("questions", _data(settings.data.train)),
            ("labels", reward.labels),
            ("algorithm", _algorithm(settings)),
            ("estimator", _data(reward.estimator)),
            ("votes on a question", str(rollout.votes)),
            ("questions in a step", str(rollout.questions_per_step)),
            ("weights", dtype),
        ),
    )
    own = {"name", "model.path", "model.revision", "data.train"}
    usual = Settings.model_validate(
        {
            "name": settings.name,
            "model": {"path": settings.model.path},
            "data": {"train": settings.data.train},
        }
    ).flat()
    rows = tuple(
        _shown(key, value)
        for key, value in settings.flat().items()
        if value != usual.get(key) and key not in own and not key.startswith(MAY_DIFFER)
    )
    yield TextTable("Settings that differ from the defaults", ("setting", "value"), rows)
    if versions:  # earlier checkpoints have none
        yield TextTable("Versions", ("package", "version"), tuple(versions.items()))


def _algorithm(settings: Settings) -> str:
    by_advantages = {"mean_std": "grpo", "gae": "ppo", "prime": "prime"}
    advantages = settings.reward.advantages
    return settings.algorithm or by_advantages.get(advantages, advantages)


def _base(settings: Settings) -> str:
    """Name the starting model: on the hub, or its folder's last part."""
    path = Path(settings.model.path)
    return path.resolve().name if path.exists() else settings.model.path


def _data(source: str) -> str:
    """Name questions, or a user's code: on the hub, ours, or a file without its folder."""
    return source if source.startswith(("hub:", "arithmetic:")) else Path(source).name


def _shown(key: str, value: Any) -> tuple[str, str]:
    """Return a setting as its row shows it."""
    if key.startswith(EXTRA):
        key = EXTRA + _data(key.removeprefix(EXTRA))
    if key in FILES:
        value = _data(value)
    return key, value if isinstance(value, str) else json.dumps(value)
