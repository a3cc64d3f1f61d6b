"""Checkpoints as ordinary Hugging Face folders."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from statistics import fmean

import pytest
import torch
from huggingface_hub import ModelCard
from rich.console import Console
from safetensors.torch import load_file
from small_run import SMALL
from step_lines import step_lines
from transformers import AutoModelForCausalLM, AutoTokenizer

from ttrl.report.display import Display
from ttrl.run.export import export
from ttrl.run.run_folder import RunFolder
from ttrl.settings.recipe import load_settings
from ttrl.trainer import train
from ttrl.types import UserError


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a checkpoint of each of its two steps."""
    folder = tmp_path_factory.mktemp("export") / "run"
    overrides = [*SMALL, "checkpoint.every=1", "checkpoint.best=majority_ratio"]
    settings = load_settings("tiny-arithmetic", overrides=[*overrides, "data.held_out=none"])
    train(settings, RunFolder(folder), Display(Console(quiet=True)))
    return folder


def test_the_newest_one_is_the_trained_model(run: Path, tmp_path: Path) -> None:
    assert export(run, tmp_path / "out", "newest", None).step == 2
    files = {path.name for path in (tmp_path / "out").iterdir()} - {"README.md"}
    assert files == {path.name for path in (run / "model").iterdir()}
    for name in files:
        assert (tmp_path / "out" / name).read_bytes() == (run / "model" / name).read_bytes()


def test_its_card_says_what_it_is(run: Path, tmp_path: Path) -> None:
    export(run, tmp_path / "out", "newest", None)
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert "on 8 questions of few\\_train.jsonl, in 2 steps" in card.text
    assert f"| torch | {torch.__version__}" in card.text
    assert str(tmp_path) not in card.content and str(run) not in card.content
    results = {(r.dataset_name, r.metric_name): r.metric_value for r in card.data.eval_results}
    after = json.loads((run / "summary.json").read_text())["after"]["pass@1"]
    assert results["few_train.jsonl (trained on)", "pass@1 in %"] == round(100 * after, 2)


def test_transformers_loads_it(run: Path, tmp_path: Path) -> None:
    checkpoint = export(run / "checkpoints" / "step_00001", tmp_path / "out", "newest", "bfloat16")
    assert checkpoint.step == 1
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.dtype == torch.bfloat16
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    ids = tokenizer("What is 12 + 34?", return_tensors="pt")
    out = model.generate(**ids, do_sample=False, max_new_tokens=4)
    assert out.shape[1] > ids["input_ids"].shape[1]
    trained = load_file(run / "model" / "model.safetensors")
    one_step = {name: p.float() for name, p in model.named_parameters()}
    gaps = [(trained[name] - one_step[name]).abs().max().item() for name in one_step]
    assert 1e-5 < max(gaps) < 0.02  # another step, and bfloat16


def test_one_of_them_by_name(run: Path, tmp_path: Path) -> None:
    assert export(run, tmp_path / "first", 1, None).step == 1
    best = export(run, tmp_path / "best", "best", None)
    ratios = [line["vote/majority_ratio"] for line in step_lines(run)]
    scores = [ratios[0], fmean(ratios)]  # over what there is of the last pass
    assert best.score == pytest.approx(max(scores))
    assert best.step == 1 + scores.index(max(scores))
    with pytest.raises(UserError, match=r"step_00007 is not a complete .* holds step_00001, step_"):
        export(run, tmp_path / "none", 7, None)
    with pytest.raises(UserError, match=r"first exists; name a new folder"):
        export(run, tmp_path / "first", 1, None)
    first = run / "checkpoints" / "step_00001"
    for which, asked in ((1, "--step 1"), ("best", "--best")):
        with pytest.raises(UserError, match=f"is a checkpoint already, so {asked} names a second"):
            export(first, tmp_path / "none", which, None)


def test_a_damaged_one_is_refused(run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    victim = copy / "checkpoints" / "step_00002" / "rank_00000.safetensors"
    content = bytearray(victim.read_bytes())
    content[-1] ^= 1
    victim.write_bytes(content)
    with pytest.raises(UserError, match="differs from its SHA-256"):
        export(copy, tmp_path / "out", 2, None)
    assert not (tmp_path / "out").exists()
    notes: list[str] = []
    assert export(copy, tmp_path / "out", "newest", None, notes.append).step == 1
    (note,) = notes
    assert note.startswith("warning: not a complete checkpoint: step_00002: rank_00000.safetensors")


def test_a_place_where_it_cannot_be_is_refused(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is read."""
    monkeypatch.setattr("ttrl.run.export.load_outline", None)
    (tmp_path / "link").symlink_to(run / "checkpoints")
    for place in (run / "out", tmp_path / "link" / "step_00009"):
        with pytest.raises(UserError, match="is in the run's own folder"):
            export(run, place, "newest", None)
    monkeypatch.setattr("os.access", lambda path, mode: path != tmp_path)
    with pytest.raises(UserError, match=f"out: cannot make a folder in {tmp_path}"):
        export(run, tmp_path / "out", "newest", None)


def test_an_error_in_the_settings_names_their_file(run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    (copy / "config.toml").write_text("seed = 'x'\n")
    with pytest.raises(UserError, match=rf"{copy}/config\.toml"):
        export(copy, tmp_path / "out", "newest", None)


def test_the_checkpoint_of_another_run_is_refused(run: Path, tmp_path: Path) -> None:
    """Its card would say what this run has measured, of weights that are the other's."""
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    config = copy / "config.toml"
    text = config.read_text()
    config.write_text(text.replace("seed = 0\n", "seed = 7\n", 1))
    message = r"step_00002 was saved by another run .* which has seed = 7 \(was 0\): put it back"
    with pytest.raises(UserError, match=message):
        export(copy, tmp_path / "out", "newest", None)
    assert not (tmp_path / "out").exists()
    config.write_text(text.replace("max_steps = 2\n", "max_steps = 9\n", 1))  # it was extended
    assert export(copy, tmp_path / "out", "newest", None).step == 2


def test_a_policy_of_an_agent_is_asked_for_where_all_share_one(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--agent 1: .* its agents share one; leave it out"):
        export(run, tmp_path / "out", "newest", None, agent=1)
