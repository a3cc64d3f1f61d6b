"""Runs from end to end, and what they leave behind."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from rich.console import Console
from small_run import Run
from step_lines import step_lines
from transformers import AutoModelForCausalLM, AutoTokenizer

from ttrl.models.pretrained import TINY_BASE
from ttrl.report.display import Display
from ttrl.run.run_folder import RunFolder
from ttrl.settings.recipe import load_settings
from ttrl.trainer import train
from ttrl.types import UserError

TURN = Path(__file__).parents[2] / "bench" / "paraphrases" / "turned_around.py"


def test_it_learns(tmp_path: Path) -> None:
    """A short version of the default run; the real one is measured by bench/tiny_seeds.py."""
    overrides = [
        "max_steps=5",
        "rollout.votes=16",
        "policy.trained_samples=16",
        "policy.sequences_per_update=128",
        "evaluation.samples=4",
    ]
    settings = load_settings("tiny-arithmetic", overrides=overrides)
    summary = train(settings, RunFolder(tmp_path / "run"), Display(Console(quiet=True)))
    assert summary["after"]["pass@1"] >= summary["before"]["pass@1"] + 0.05
    held_out = summary["held_out"]
    assert held_out["after"]["pass@1"] >= held_out["before"]["pass@1"] + 0.05


def test_run_folder(small: Path) -> None:
    folder = small
    assert sorted(p.name for p in folder.iterdir()) == [
        "checkpoints",
        "config.toml",
        "evaluations",
        "metrics.jsonl",
        "model",
        "report.html",
        "rollouts",
        "summary.json",
    ]
    assert load_settings(str(folder / "config.toml")).max_steps == 2
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["steps"] == 2
    assert summary["wall_s"] > 0
    for scores in (summary["before"], summary["held_out"]["after"]):
        assert 0 < scores["pass@1"] < 1
        assert 0 < scores["maj@2"] <= scores["pass@2"] < 1
    rollouts = [json.loads(x) for x in (folder / "rollouts" / "step_00002.jsonl").open()]
    assert len(rollouts) == 4
    assert [len(r["completions"]) for r in rollouts] == [8] * 4
    assert all(r["policy_version"] == 2 for r in rollouts)
    step = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    votes = [[c["answer"] for c in r["completions"]] for r in rollouts]
    assert step["vote/abstention_share"] == pytest.approx(
        sum(a is None for v in votes for a in v) / 32
    )
    assert step["vote/majority_ratio"] == pytest.approx(
        sum(r["majority_ratio"] for r in rollouts) / 4
    )
    assert step["vote/tie_share"] == sum(r["tied"] for r in rollouts) / 4
    assert step["vote/undecided_share"] == sum(r["undecided"] for r in rollouts) / 32
    assert step["policy/updates"] == 2


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (
            ["evaluation.every=1", "loss.kl_coef=0.01", "reward.estimator=confidence"],
            {"vote/majority_ratio", "policy/kl", "eval/train/pass@1", "mismatch/at_start_logits"},
        ),
        (
            ["algorithm=ppo", "reward.kl_coef=0.1"],
            {"critic/explained_variance", "critic/clip_fraction", "reward/kl_coef"},
        ),
        (
            [
                "rollout.resample_rounds=1",
                "reward.extra.soft_overlong=0.5",
                "reward.overlong_buffer=16",
            ],
            {"vote/majority_ratio"},
        ),
        (
            ["rollout.workflow=debate", "rollout.agents=2", "rollout.rounds=2"],
            {"agents/reward/turn=1", "agents/read_tokens", "label/outcome_accuracy"},
        ),
        (
            [
                "rollout.workflow=debate",
                "rollout.agents=2",
                "rollout.rounds=2",
                "rollout.policies=per_agent",
            ],
            {"agent_1/loss", "agent_1/entropy"},
        ),
        (
            ["algorithm=prime", "reward.labels=harmony", f"harmony.paraphrase={TURN}:turn"],
            {"prm/rank_accuracy", "prm/log_ratio", "free_pass/overruled_share"},
        ),
    ],
)
def test_each_metric_is_explained(run: Run, overrides: list[str], expected: set[str]) -> None:
    lines = (run("run", overrides) / "metrics.jsonl").read_text().splitlines()
    written = {name.partition("/level=")[0] for line in lines for name in json.loads(line)}
    page = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
    cells = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `")]
    patterns = [
        re.escape(name).replace(r"\.\.\.", ".+").replace("@N", r"@\d+").replace("@K", r"@\d+")
        for cell in cells
        for name in re.findall("`([^`]+)`", cell)
    ]
    unexplained = {name for name in written if not any(re.fullmatch(p, name) for p in patterns)}
    assert unexplained == set()
    assert expected <= written


def test_saved_model_is_an_ordinary_one(small: Path) -> None:
    folder = small / "model"
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is 12 + 34?"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    out = model.generate(**ids, do_sample=False, max_new_tokens=40)
    assert r"\boxed{" in tokenizer.decode(out[0])
    assert model.config.architectures == ["Qwen2ForCausalLM"]


def test_real_text_runs_through(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Long LaTeX questions, which the tiny model cannot answer, take the same path."""
    rows = [
        {
            "prompt": rf"Let $x_{i} \in \mathbb{{R}}$ satisfy \[\sum_{{k=1}}^{{{i}}} "
            + r"\frac{x^k}{k!} = \sqrt{2}.\] " * 12
            + "Find the number of distinct values — é, ∑, 数.",
            "answer": f"0{i}",
            "source": "made up",
            "id": str(i),
        }
        for i in range(5)
    ]
    path = tmp_path / "questions.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    settings = load_settings(
        "aime24",
        model="tiny-base",
        data=str(path),
        overrides=[
            "max_steps=2",
            "model.dtype=float32",
            "data.prompt_field=prompt",
            "data.max_prompt_tokens=2000",
            "rollout.questions_per_step=2",
            "rollout.votes=4",
            "rollout.max_new_tokens=32",
            "policy.trained_samples=4",
            "policy.sequences_per_update=8",
            "evaluation.samples=2",
        ],
    )
    display = Display(Console())
    summary = train(settings, RunFolder(tmp_path / "run"), display)
    assert summary["steps"] == 2
    assert summary["after"]["pass@1"] == 0
    metrics = step_lines(tmp_path / "run")
    share = metrics[0]["vote/abstention_share"]
    assert 0.2 < share <= 1  # most of what it writes about such text has no box
    assert f"abstained {share:.0%}" in capsys.readouterr().out


def test_nothing_is_left_behind_by_a_bad_start(tmp_path: Path) -> None:
    settings = load_settings("tiny-arithmetic", overrides=["model.path=/nowhere/at/all"])
    with pytest.raises(UserError, match=r"cannot load model\.path = '/nowhere/at/all'"):
        train(settings, RunFolder(tmp_path / "run"), Display(Console(quiet=True)))
    assert not (tmp_path / "run").exists()


def test_a_model_with_missing_weights_is_refused(tmp_path: Path) -> None:
    """transformers would put random weights in their place and go on."""
    model = AutoModelForCausalLM.from_pretrained(TINY_BASE)
    weights = {k: v.clone() for k, v in model.state_dict().items() if "layers.1.mlp" not in k}
    model.save_pretrained(tmp_path / "broken", state_dict=weights)
    AutoTokenizer.from_pretrained(TINY_BASE).save_pretrained(tmp_path / "broken")
    settings = load_settings("tiny-arithmetic", overrides=[f"model.path={tmp_path / 'broken'}"])
    with pytest.raises(UserError, match=r"lacks 3 weights of a Qwen2ForCausalLM"):
        train(settings, RunFolder(tmp_path / "run"), Display(Console(quiet=True)))
    assert not (tmp_path / "run").exists()


def test_attention_code_from_the_hub_is_refused(tmp_path: Path) -> None:
    shutil.copytree(TINY_BASE, tmp_path / "hostile")
    config = tmp_path / "hostile" / "config.json"
    values = json.loads(config.read_text()) | {"_attn_implementation": "somebody/kernel"}
    config.write_text(json.dumps(values))
    settings = load_settings("tiny-arithmetic", overrides=[f"model.path={tmp_path / 'hostile'}"])
    with pytest.raises(UserError, match="names code on the hub"):
        train(settings, RunFolder(tmp_path / "run"), Display(Console(quiet=True)))


def test_a_run_folder_that_cannot_be_made_is_refused_first(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    settings = load_settings("tiny-arithmetic", overrides=["model.path=/nowhere"])
    with pytest.raises(UserError, match="cannot make a folder in"):
        train(settings, RunFolder(tmp_path / "file" / "run"), Display(Console(quiet=True)))


def test_a_run_leaves_its_page(small: Path) -> None:
    page = (small / "report.html").read_text()
    assert "<dd>finished</dd>" in page
    assert "2 in " in page
    data = re.search(r'<script type="application/json" id="data">(.*)</script>', page)
    assert data is not None
    assert json.loads(data[1])["runs"] == [{"name": "run", "texts": [1, 2]}]
    assert {"votes", "accuracy_train"} <= {f["key"] for f in json.loads(data[1])["figures"]}
