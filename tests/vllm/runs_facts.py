"""What runs of every kind do on one vLLM, written down as JSON: started once for all of them.

python runs_facts.py OUTPUT
"""

from __future__ import annotations

import json
import shutil
import sys
import weakref
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from facts import plain_gap
from patched_pools import command, give, shared, stay_in_groups
from pushes import PARAMS, Facts, questions_for, vllm_settings
from rich.console import Console
from safetensors.torch import load_file
from step_lines import step_lines

import ttrl
from ttrl.data.arithmetic import question_rows
from ttrl.evaluation import measuring
from ttrl.learner.local import LocalModel
from ttrl.models.packed_model import load_policy_model
from ttrl.models.pretrained import load_tokenizer
from ttrl.reward_models import make_reward_model
from ttrl.rollout.ends import has_ended
from ttrl.rollout.engines.vllm_engine import VllmEngine
from ttrl.rollout.pool import RolloutPool, make_pool
from ttrl.rollout.sampling import SamplingParams
from ttrl.search import SEARCHES, SearchParams, search
from ttrl.settings import Settings
from ttrl.system.ranks import Ranks
from ttrl.types import CompletionGroup, Question

HERE = Path(__file__).parents[1] / "e2e"
FEW, UNLABELLED = HERE / "few_train.jsonl", HERE / "few_unlabelled.jsonl"
SMALL = (
    f"data.train={UNLABELLED}",  # nothing is measured, which takes half of such a run's time
    "data.held_out=none",
    "rollout.engine=vllm",
    "rollout.kv_cache_gb=1",
    "rollout.questions_per_step=4",
    "rollout.votes=8",
    "rollout.max_new_tokens=48",
    "policy.trained_samples=8",
    "policy.sequences_per_update=32",  # one update per step: all samples are on-policy
    "evaluation.samples=2",
    "threads=1",
    "report.every_s=0",
)
TWO = ("max_steps=2", "checkpoint.every=1")
STREAM = tuple(s for s in SMALL if not s.startswith("data.train"))
SINGLE = ("rollout.questions_per_step=1", "policy.sequences_per_update=8")
WORKFLOWS = {
    "debate": TWO,
    "mixture": ("max_steps=1", "rollout.workflow=mixture", "rollout.agents=3", "rollout.rounds=1"),
    "chain": ("max_steps=1", "rollout.workflow=chain", "rollout.agents=4", "rollout.rounds=1"),
}
RUNS = {
    "ppo_filters_lora": (
        *("max_steps=2", "algorithm=ppo", "lora.rank=2", "rollout.top_k=7", "rollout.top_p=0.9"),
        *("rollout.min_p=0.02", 'rollout.stop=["}"]'),
    ),
    "prime": ("max_steps=1", "algorithm=prime"),
    "resampled": ("max_steps=1", "rollout.resample_rounds=2", "rollout.temperature=0.3"),
    "remax": ("max_steps=1", "reward.advantages=remax"),
}
PER_AGENT = (
    *("max_steps=2", "optimizer.learning_rate=0.002", "rollout.temperature=1.0"),
    *("rollout.policies=per_agent", "policy.sequences_per_update=16"),
)
"""The second step finds the agents' weights far apart."""
RULES = "majority,weighted,borda,self-certainty,deepconf"


def main(output: str) -> None:
    folder = Path(output).parent
    settings = vllm_settings("rollout.kv_cache_gb=1", 'rollout.stop=["\\n"]')
    torch.set_num_threads(1)
    tokenizer = load_tokenizer(settings.model)
    engine = VllmEngine(settings, tokenizer, Ranks(), load_weights=False)
    give(shared(engine))
    stay_in_groups()
    facts: Facts = {
        "agents": agents(folder),
        "streams": streams(folder),
        "posed": posed(folder),
        "per_agent": trained(folder / "per_agent", *SMALL, *PER_AGENT, recipe="tiny-agents"),
        "runs": {name: figures(folder / name, *more) for name, more in RUNS.items()},
        "measured": measured(folder),
        "searched": searched(settings, RolloutPool(engine)),
    }
    llm = weakref.ref(engine._llm)
    engine.close()
    facts["gone"] = llm() is None
    give(make_pool)
    facts["started_again"] = figures(folder / "again", "max_steps=1")
    Path(output).write_text(json.dumps(facts), encoding="utf-8")


def trained(
    folder: Path, *overrides: str, recipe: str = "tiny-arithmetic", **options: Any
) -> list[dict[str, Any]]:
    """The lines of a run's steps."""
    quiet = Console(quiet=True)
    ttrl.train(recipe, overrides=overrides, run_dir=folder, console=quiet, **options)
    return step_lines(folder)


def largest_gap(lines: Sequence[dict[str, Any]]) -> float:
    """How far the engine's log-probs are from the policy's, before its updates."""
    return max(line["mismatch/max_log_ratio"] for line in lines if "mismatch/max_log_ratio" in line)


def figures(folder: Path, *overrides: str) -> Facts:
    lines = trained(folder, *SMALL, *overrides)
    return {"gap": largest_gap(lines), "last": lines[-1]}


def gone_on_with(run: Path, step: int, recipe: str, *overrides: str) -> bool:
    """Whether a run that was killed after a step and went on is the one that was not."""
    left = run.with_name(f"{run.name}_left")
    shutil.copytree(run, left)
    (left / "summary.json").unlink()
    for path in (left / "checkpoints").iterdir():
        if int(path.name.removeprefix("step_")) > step:
            shutil.rmtree(path)
    trained(left, *overrides, recipe=recipe, resume=True)
    return same(run, left)


def same(run: Path, other: Path) -> bool:
    """Whether two runs have the same answers and weights, bit for bit."""
    answers = sorted(p.name for p in (run / "rollouts").glob("*.jsonl"))
    files = ["model/model.safetensors", *(f"rollouts/{name}" for name in answers)]
    return all((run / file).read_bytes() == (other / file).read_bytes() for file in files)


def agents(folder: Path) -> Facts:
    few = folder / "four.jsonl"  # each is measured in all its turns, before and after
    few.write_text("".join(FEW.read_text().splitlines(keepends=True)[:4]))
    labelled = (*SMALL, f"data.train={few}")
    facts: Facts = {}
    for name, more in WORKFLOWS.items():
        lines = trained(folder / name, *labelled, *more, recipe="tiny-agents")
        before = json.loads((folder / name / "summary.json").read_text())["before"]
        facts[name] = {"gap": largest_gap(lines), "outcome": before["outcome"]}
    options = (*labelled, *WORKFLOWS["debate"])
    run = folder / "debate"
    facts["resumed"] = gone_on_with(run, 1, "tiny-agents", *options)
    again, record = folder / "debate_again", run / "rollouts"
    trained(again, *options, recipe="tiny-agents", replay=record)
    facts["replayed"] = same(run, again)
    return facts


def streams(folder: Path) -> Facts:
    rows = [{key: row[key] for key in ("id", "prompt")} for row in question_rows("train")[:3]]
    path = folder / "arriving.jsonl"
    ended: list[Any] = [*rows, {"end_of_stream": True}]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in ended))
    arriving = (*STREAM, f"data.train={path}", *SINGLE, "stream.patience_s=600")
    facts: Facts = {"ids": [row["id"] for row in rows]}
    more = ("stream.reset=per_question", "stream.visits=2", "stream.warmup_steps=0")
    fast = ("lora.rank=2", "optimizer.learning_rate=1e-2")
    for name, own in (("kept", ()), ("reset", (*more, *fast))):
        run = folder / name
        lines = trained(run, *arriving, *own, recipe="tiny-stream")
        facts[name] = {
            "gap": largest_gap(lines),
            "updates": [line["policy/updates"] for line in lines],
            "answers": kept(run, "answers"),
        }
    facts["adapted"] = kept(run, "adapted")
    base = dict(load_policy_model(vllm_settings().model).named_parameters())
    saved = load_file(run / "model" / "model.safetensors")
    facts["is_the_base"] = all(torch.equal(tensor, base[n]) for n, tensor in saved.items())
    return facts


def kept(run: Path, name: str) -> list[dict[str, Any]]:
    """The lines of one of a stream's files."""
    return [json.loads(x) for x in (run / "stream" / f"{name}.jsonl").read_text().splitlines()]


def posed(folder: Path) -> Facts:
    own = ("data.train=nothing", "posed.prompts=8", "policy.sequences_per_update=64")
    options = (*STREAM, *own, *TWO)
    lines = trained(folder / "posed", *options, recipe="tiny-self-posed")
    again = gone_on_with(folder / "posed", 1, "tiny-self-posed", *options)
    return {"gap": largest_gap(lines), "lines": lines, "resumed": again}


def measured(folder: Path) -> Facts:
    """What ``ttrl eval`` says of answers that vLLM samples, and of the same from a file; and the
    answers of the other engine."""
    common = (*("--recipe", "tiny-arithmetic", "--set", "threads=1", "--set", "selection.window=8"),
              *("--set", "evaluation.samples=8", "--set", "selection.warm_up=4"),
              *("--set", "selection.draws=4"))  # fmt: skip
    judged = ("--reward-model", "tiny-prm", "--select")
    vllm = ("--set", "rollout.engine=vllm", *common, *judged)
    ways = {
        "vllm": (*vllm, f"{RULES},reflection", "--save-samples", str(folder / "vllm.jsonl")),
        "from_samples": (*vllm, RULES, "--from-samples", str(folder / "vllm.jsonl")),
        "other": (*common, *judged, RULES, "--save-samples", str(folder / "other.jsonl")),
    }
    facts: Facts = {}
    for name, options in ways.items():
        scores = folder / f"{name}.json"
        if name == "other":
            measuring.make_pool = make_pool
        command("eval", "tiny-base", str(FEW), *options, "--json", str(scores))
        (facts[name],) = json.loads(scores.read_text())["results"]
    for name in ("vllm", "other"):
        lines = (folder / f"{name}.jsonl").read_text().splitlines()
        facts[f"{name}_answers"] = list(map(json.loads, lines))
    return facts


class Watched(RolloutPool):
    """Keeps what it has sampled."""

    def __init__(self, pool: RolloutPool) -> None:
        super().__init__(pool._engine)
        self.groups: list[CompletionGroup] = []

    def sample(
        self, questions: Sequence[Question], params: SamplingParams, *more: Any
    ) -> list[CompletionGroup]:
        self.groups += (groups := super().sample(questions, params, *more))
        return groups


def searched(settings: Settings, pool: RolloutPool) -> Facts:
    """Searches, whose paths are prompts, held against plain forwards."""
    tokenizer = load_tokenizer(settings.model)
    policy = LocalModel(load_policy_model(settings.model), settings)
    model = make_reward_model("tiny-prm", settings)
    # Long enough for blocks of the prefix cache.
    questions = [replace(q, text=q.prompt) for q in questions_for(tokenizer)]
    facts: Facts = {}
    for kind in SEARCHES:
        watched = Watched(pool)
        watched.push_weights(policy)
        params = SearchParams(n=4, width=2, sampling=PARAMS)
        found = [search(kind, watched, model, questions, params) for _ in range(2)]
        groups = watched.groups
        written = [c for group in groups for c in group.completions]
        stops: Any = watched._engine.stop_ids  # type: ignore[attr-defined]
        facts[kind] = {
            "gap": max(plain_gap(policy, groups[: len(groups) // 2], PARAMS)),
            "again": found[0] == found[1],
            "solutions": [len(one.solutions) for one in found[0]],
            "longest_path": max(len(g.question.prompt_ids) for g in groups),
            "prompts": max(len(q.prompt_ids) for q in questions),
            "steps": sum("\n" in c.text for c in written),
            "too_long": sum(
                has_ended(c.token_ids[:-1], stops, ("\n",), tokenizer)
                for c in written
                if len(c.token_ids) > 1
            ),
        }
    return facts


if __name__ == "__main__":
    main(*sys.argv[1:])
