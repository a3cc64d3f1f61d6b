"""What a run leaves on disk."""

import copy
import json
import math

import pytest
import torch
from groups import estimate, group
from tiny_models import TOKENIZER, make_settings, saved, tiny_model
from transformers import GenerationConfig

from ttrl.pretrained import load_model
from ttrl.recipe import load_settings
from ttrl.run_folder import RunFolder, save_model
from ttrl.types import UserError


def add_step(folder: RunFolder, step: int, *answers: str | None, **metrics: float) -> None:
    sampled = group(*answers, id=f"q{step}")
    folder.add_step(step, [sampled], [estimate(sampled)], {"step": step, **metrics})


@pytest.fixture
def folder(tmp_path) -> RunFolder:
    made = RunFolder(tmp_path / "run")
    made.create(make_settings())
    return made


def lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# ---------------------------------------------------------------------------------------------
# The folder


def test_the_settings_are_written_so_that_they_can_be_read_again(folder):
    settings = make_settings()
    assert load_settings(str(folder.path / "config.toml")) == settings
    assert sorted(p.name for p in folder.path.iterdir()) == ["config.toml", "rollouts"]


def test_an_unfinished_run_is_not_written_to(folder):
    add_step(folder, 1, "1", "2")
    add_step(folder, 2, "1", "2")
    before = {p: p.read_bytes() for p in folder.path.rglob("*") if p.is_file()}
    with pytest.raises(UserError) as error:
        RunFolder(folder.path).create(make_settings(rollout={"votes": 8}))
    assert f"{folder.path} exists (unfinished, 2 steps)" in str(error.value)
    assert f"--run-dir {folder.path}-2," in str(error.value)
    assert {p: p.read_bytes() for p in folder.path.rglob("*") if p.is_file()} == before


def test_a_finished_run_is_called_finished(folder):
    add_step(folder, 1, "1", "2")
    folder.write_summary({"steps": 1})
    with pytest.raises(UserError, match=r"exists \(finished, 1 steps\); nothing was overwritten"):
        folder.refuse_existing()


def test_the_name_that_is_offered_is_free(folder):
    for i in (2, 3, 5):
        folder.path.with_name(f"run-{i}").mkdir()
    with pytest.raises(UserError, match=rf"--run-dir {folder.path}-4,"):
        folder.refuse_existing()


def test_an_empty_folder_or_a_file_is_refused_too(tmp_path):
    (tmp_path / "file").write_text("kept")
    (tmp_path / "empty").mkdir()
    for name in ("file", "empty"):
        with pytest.raises(UserError, match=rf"{name} exists \(unfinished, 0 steps\)"):
            RunFolder(tmp_path / name).refuse_existing()
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.parametrize("left", ["", "step_00002.tmp", "step_00002_keep", "step_00002"])
def test_resume_is_offered_where_it_can_work(folder, left):
    (folder.checkpoints / left).mkdir(parents=True)
    with pytest.raises(UserError) as error:
        folder.refuse_existing()
    assert ("--resume" in str(error.value)) is (left == "step_00002")
    (folder.path / "config.toml").unlink()
    with pytest.raises(UserError) as error:
        folder.refuse_existing()
    assert "--resume" not in str(error.value)


def test_the_folder_that_the_program_runs_in_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"folder \. exists"):
        RunFolder(tmp_path.relative_to(tmp_path)).refuse_existing()


# ---------------------------------------------------------------------------------------------
# Steps


def test_a_step_is_its_answers_and_a_line_of_metrics(folder):
    first, second = group("7", "8", "7.0", id="a"), group(None, "9", "9", id="b")
    groups = [first, second]
    folder.add_step(3, groups, [estimate(g) for g in groups], {"step": 3, "vote/margin": 0.25})
    folder.add_step(4, [first], [estimate(first)], {"step": 4})
    assert lines(folder.path / "metrics.jsonl") == [{"step": 3, "vote/margin": 0.25}, {"step": 4}]
    names = sorted(p.name for p in (folder.path / "rollouts").glob("*.jsonl"))
    assert names == ["step_00003.jsonl", "step_00004.jsonl"]
    a, b = lines(folder.path / "rollouts" / names[0])
    assert a == {
        "question": "a",
        "prompt": "What is 3 + 4?",
        "policy_version": 0,
        "label": "7",
        "majority_ratio": pytest.approx(2 / 3),
        "completions": [
            {
                "text": f"So it is $\\boxed{{{answer}}}$.",
                "answer": answer,
                "reward": reward,
                "tokens": tokens,
                "finish_reason": "stop",
            }
            for answer, reward, tokens in (("7", 1.0, 1), ("8", 0.0, 2), ("7.0", 1.0, 3))
        ],
    }
    assert [c["answer"] for c in b["completions"]] == [None, "9", "9"]
    assert (b["label"], b["majority_ratio"]) == ("9", pytest.approx(2 / 3))


@pytest.mark.parametrize("answer", ["\ud800", "\u2028", "\x1b[31m", "\n", "\x00", '"}', "☃"])
def test_any_sampled_text_survives(folder, answer):
    """Lone surrogates, which UTF-8 cannot hold, and whatever some reader takes for a new line."""
    add_step(folder, 1, answer, "2")
    raw = (folder.path / "rollouts" / "step_00001.jsonl").read_bytes()
    assert raw.isascii()
    assert raw.count(b"\n") == 1
    text = json.loads(raw)["completions"][0]["text"]
    assert text == f"So it is $\\boxed{{{answer}}}$."


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_metric_that_json_cannot_hold_is_an_error_and_not_written(folder, value):
    add_step(folder, 1, "1", "2")
    with pytest.raises(ValueError, match="not JSON compliant"):
        add_step(folder, 2, "1", "2", loss=value)
    assert lines(folder.path / "metrics.jsonl") == [{"step": 1}]


def test_a_step_s_metrics_are_written_after_its_answers(folder):
    """So that a step that is counted has its answers, wherever the run was interrupted."""
    (folder.path / "rollouts" / "step_00001.jsonl").mkdir()  # cannot be written
    with pytest.raises(OSError):
        add_step(folder, 1, "1", "2")
    assert not (folder.path / "metrics.jsonl").exists()


def test_groups_without_their_estimates_are_an_error(folder):
    sampled = group("1", "2")
    with pytest.raises(ValueError):
        folder.add_step(1, [sampled], [], {"step": 1})
    assert list((folder.path / "rollouts").iterdir()) == []


# ---------------------------------------------------------------------------------------------
# Going back


@pytest.fixture
def three_steps(folder) -> RunFolder:
    for step in (1, 2, 3):
        add_step(folder, step, "1", "2")
    folder.checkpoints.mkdir()
    return folder


def test_going_back_removes_what_was_written_later_and_nothing_of_the_user_s(three_steps):
    foreign = [
        "step_00003 (copy).jsonl",
        "step_00003.jsonl.gz",
        "step_3.jsonl",
        "step_000003.jsonl",
    ]
    for name in foreign:
        (three_steps.path / "rollouts" / name).write_text("kept")
    others = ["model.tmp", "model.mine.tmp", "models"]
    for name in (*others, "model", "model.abc_1234.tmp"):
        (three_steps.path / name).mkdir()
    three_steps.remove_after(1)
    names = {p.name for p in (three_steps.path / "rollouts").iterdir()}
    assert names == {"step_00001.jsonl", "step_00001.safetensors", *foreign}
    assert lines(three_steps.path / "metrics.jsonl") == [{"step": 1}]
    own = {"config.toml", "metrics.jsonl", "rollouts", "checkpoints"}
    assert {p.name for p in three_steps.path.iterdir()} == {*others, *own}


@pytest.mark.parametrize("what", ["rollouts", "checkpoints", "."])
def test_a_folder_that_cannot_be_written_to_is_not_gone_back_in(three_steps, what, monkeypatch):
    """As on a disk that is mounted read-only: nothing is changed before that is known."""
    victim = three_steps.path / what
    with monkeypatch.context() as patch, pytest.raises(UserError, match=f"{victim} is not there"):
        patch.setattr("os.access", lambda path, mode: path != victim)
        three_steps.remove_after(1)
    assert len(lines(three_steps.path / "metrics.jsonl")) == 3


def test_missing_steps_are_noticed_before_anything_is_changed(three_steps):
    before = {p: p.read_bytes() for p in three_steps.path.rglob("*") if p.is_file()}
    with pytest.raises(UserError, match=r"metrics\.jsonl has 3 steps, expected 4"):
        three_steps.remove_after(4)
    assert {p: p.read_bytes() for p in three_steps.path.rglob("*") if p.is_file()} == before


# ---------------------------------------------------------------------------------------------
# The model


def weights_of(model) -> list:
    return list(model.named_parameters())


@pytest.mark.parametrize(
    ("values", "kept"),
    [
        ({"temperature": 0.7, "top_p": 0.9, "do_sample": False}, {"temperature": 0.7}),
        ({"temperature": 0.7, "do_sample": True}, {"temperature": 0.7}),
        ({"temperature": 0.7, "length_penalty": 2.0}, {"temperature": None}),
    ],
    ids=["sampling", "valid", "beams"],
)
def test_any_model_that_can_be_loaded_can_be_saved(values, kept, tmp_path):
    """transformers refuses what it loads: values that are without effect."""
    settings = saved(tiny_model(), tmp_path / "base")
    text = json.dumps({"eos_token_id": [5, 7], **values})
    (tmp_path / "base" / "generation_config.json").write_text(text)
    model = load_model(settings, torch.float32)
    save_model(tmp_path / "out", model, TOKENIZER, weights_of(model))
    config = GenerationConfig.from_pretrained(tmp_path / "out")
    assert config.eos_token_id == [5, 7]
    assert {name: getattr(config, name) for name in kept} == kept
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_saving_a_model_uses_a_folder_of_its_own(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "file.tmp").write_text("kept")
    (tmp_path / "link.tmp").symlink_to(elsewhere)
    model = tiny_model()
    for name in ("file", "link"):
        save_model(tmp_path / name, model, TOKENIZER, weights_of(model))
        assert (tmp_path / name / "config.json").is_file()
        assert (tmp_path / name).stat().st_mode == elsewhere.stat().st_mode
    assert list(elsewhere.iterdir()) == []
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == ["elsewhere", "file", "file.tmp", "link", "link.tmp"]


def test_a_model_that_cannot_be_saved_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(folder):
        raise KeyboardInterrupt

    model, tokenizer = tiny_model(), copy.deepcopy(TOKENIZER)
    monkeypatch.setattr(tokenizer, "save_pretrained", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_model(tmp_path / "out", model, tokenizer, weights_of(model))
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------------------------------
# The summary


def test_a_summary_is_whole_or_absent(folder, monkeypatch):
    summary = {"before": {"pass@1": 0.25}, "steps": 2, "wall_s": 1.5}
    with pytest.raises(TypeError):
        folder.write_summary({**summary, "bad": object()})
    assert not (folder.path / "summary.json").exists()

    with monkeypatch.context() as patch, pytest.raises(OSError, match="power cut"):
        patch.setattr("pathlib.Path.rename", _power_cut)
        folder.write_summary(summary)
    assert not (folder.path / "summary.json").exists()

    folder.write_summary(summary)
    assert json.loads((folder.path / "summary.json").read_text()) == summary
    assert not (folder.path / "summary.json.tmp").exists()


def _power_cut(*_: object) -> None:
    raise OSError("power cut")


def test_a_summary_is_strict_json(folder):
    with pytest.raises(ValueError, match="not JSON compliant"):
        folder.write_summary({"before": {"pass@1": math.nan}})
    assert not (folder.path / "summary.json").exists()
