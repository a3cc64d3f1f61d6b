"""``ttrl settings``, its page, and the names that users of TRL and verl type."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from command_line import call

from ttrl.settings.explained import explained_settings, settings_page
from ttrl.settings.foreign import NOT_SETTINGS, OURS, theirs
from ttrl.settings.recipe import load_settings

DOCS = Path(__file__).parents[2] / "docs"


def test_the_page_is_that_of_the_code() -> None:
    """If not: ttrl settings --format markdown > docs/settings.md."""
    assert (DOCS / "settings.md").read_text(encoding="utf-8") == settings_page()


def test_every_setting_is_explained() -> None:
    every = {s.key: s for _, some in explained_settings().values() for s in some}
    defaults = load_settings(None, model="m", data="d").flat()
    open_tables = {"data.for_held_out", "data.chat_template_kwargs", "reward.options"}
    assert every.keys() >= defaults.keys()
    assert {key for key in every if key not in defaults} <= {*open_tables, "reward.extra"}
    assert [key for key, s in every.items() if not s.meaning] == []
    votes = every["rollout.votes"]
    assert (votes.default, votes.values) == ("64", "integer ≥ 2 and ≤ 65536")
    assert every["rollout.engine"].values == '"transformers", "vllm"'
    assert every["max_steps"].values == "integer > 0 or none"
    assert every["model.path"].default == ""


def test_one_section_and_one_setting(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, out, _ = call(capsys, monkeypatch, "settings", "evaluation")
    assert "  evaluation.samples = 16\n    (integer > 0 and ≤ 65536)\n    Answers per" in out
    assert "rollout." not in out.replace("rollout.max_new_tokens", "")
    _, out, _ = call(capsys, monkeypatch, "settings", "rollout.votes")
    assert out.count(" = ") == 1
    _, out, _ = call(capsys, monkeypatch, "settings")
    assert max(map(len, out.splitlines())) <= 80
    code, _, err = call(capsys, monkeypatch, "settings", "rollouts")
    assert code == 2 and "'rollouts' (did you mean 'rollout'?)" in err
    _, _, err = call(capsys, monkeypatch, "settings", "num_generations")
    assert "did you mean 'rollout.votes'? see docs/coming_from.md" in err


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("policy.beta", "'loss.kl_coef'"),
        ("lr", "'optimizer.learning_rate'"),
        ("actor_rollout_ref.actor.optim.lr", "'optimizer.learning_rate'"),
        ("num_generations", "'rollout.votes'"),
        ("gradient_accumulation_steps", "'policy.sequences_per_update'"),
        ("output_dir", "--run-dir"),
        ("report_to", "metrics.jsonl"),
        ("policy.lr_scheduler", "optimizer.warmup_share"),
    ],
)
def test_their_names_lead_to_ours(
    typed: str, meant: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, _, err = call(
        capsys, monkeypatch, "train", "tiny-arithmetic", "--set", f"{typed}=1", "--dry-run"
    )
    assert code == 2
    assert f"unknown setting {typed!r} (" in err and meant in err


def test_their_names_are_not_ours_and_lead_to_settings_that_exist() -> None:
    known = {s.key for _, some in explained_settings().values() for s in some}
    assert set(OURS.values()) <= known
    assert not known & (OURS.keys() | NOT_SETTINGS.keys())
    assert theirs("rollout.temperature") == ""


def test_the_table_says_what_the_page_says() -> None:
    lines = (DOCS / "coming_from.md").read_text(encoding="utf-8").splitlines()
    rows = [line for line in lines if line.startswith("| `")]
    for name, ours in OURS.items():
        beside = [row for row in rows if re.search(rf"`{re.escape(ours)}\b", row.split("|")[1])]
        assert any(name in row for row in beside), (name, ours)
