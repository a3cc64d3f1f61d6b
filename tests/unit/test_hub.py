"""An exported model's card, and its way to the hub: nothing private, nothing overwritten."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from unittest.mock import MagicMock, create_autospec

import huggingface_hub.constants
import pytest
import yaml
from command_line import call
from huggingface_hub import HfApi, ModelCard, ModelCardData, ModelInfo
from huggingface_hub.errors import RepositoryNotFoundError
from huggingface_hub.utils import filter_repo_objects
from report_runs import HOSTILE, answered, asked
from runs import make_run

from ttrl.report.run_record import read_run
from ttrl.run import hub
from ttrl.run.checkpoint import Checkpoint
from ttrl.run.hub import Repository
from ttrl.run.identity import run_digest
from ttrl.run.model_card import RUN_KEY, model_card
from ttrl.types import UserError

CANARY = "hf_CANARYCANARYCANARYCANARYCANARY"
SCORES = {0: {"train": [0.25, 0.5]}, 2: {"train": [0.75, 1.0], "held_out": [0.5, 0.5]}}
STEPS = [{"vote/majority_ratio": 0.5}, {"vote/majority_ratio": 0.75, "policy/updates": 1}]
SUMMARY = {"steps": 2, "stopped": None, "wall_s": 1.0}


def card_of(path: Path, *overrides: str, step: int = 2) -> str:
    """The card of a run of two steps, whose answers are hostile."""
    run = make_run(path, STEPS, SCORES, overrides, summary=SUMMARY)
    (path / "rollouts").mkdir()
    for at in (1, 2):
        groups = [
            asked(f"q{i}", text, text, [answered(text, text)]) for i, text in enumerate(HOSTILE)
        ]
        lines = "".join(json.dumps(group) + "\n" for group in groups[:at])
        (path / "rollouts" / f"step_{at:05d}.jsonl").write_text(lines)
    identity = {"settings": run.settings.model_dump(mode="json"), "questions": "1f"}
    state = {"identity": identity, "versions": {"torch": "2.99.1"}}
    (path / "state.json").write_text(json.dumps(state))
    return model_card(run, Checkpoint(path, step, 1, None), "bfloat16")


def test_a_card_says_what_was_measured_of_this_model(tmp_path: Path) -> None:
    text = card_of(tmp_path / "run", "model.path=Qwen/Qwen2.5-Math-7B", "data.train=hub:me/mine")
    card = ModelCard(text)
    data = card.data.to_dict()
    assert data["base_model"] == "Qwen/Qwen2.5-Math-7B"
    assert data["datasets"] == ["me/mine"]
    (index,) = data["model-index"]
    found = {r["dataset"]["name"]: [m["value"] for m in r["metrics"]] for r in index["results"]}
    assert found == {"hub:me/mine (trained on)": [87.5], "arithmetic:held_out (held out)": [50.0]}
    assert "on 2 questions of hub:me/mine, in 2 steps. The label of a question was" in text
    assert "| pass@1 | 37.5 | 87.5 | +50.0 ± 0.0 | +133.3 % |" in text
    assert "Verdict: better: pass@1 of train went from 37.5 to 87.5 % (+50.0 ± 0.0)." in text
    assert "| torch | 2.99.1 |" in text and "| weights | bfloat16 |" in text
    assert "| seed |" not in text  # that is the default


def test_what_was_measured_of_another_step_is_not_said_of_it(tmp_path: Path) -> None:
    text = card_of(tmp_path / "run", step=1)
    assert "model-index" not in text and "This model was not measured." in text
    assert "on 1 question of" in text
    assert "The run went on to step 2, another model; this is of the whole. Verdict: better" in text


@pytest.mark.parametrize("lost", ["removed", "damaged"])
def test_without_all_answers_no_number_of_questions_is_said(tmp_path: Path, lost: str) -> None:
    card_of(tmp_path / "run")
    first = tmp_path / "run" / "rollouts" / "step_00001.jsonl"
    if lost == "removed":
        first.unlink()
    else:
        first.write_text("{\n")
    run, checkpoint = read_run(tmp_path / "run"), Checkpoint(tmp_path / "run", 2, 1, None)
    assert "on questions of arithmetic:train, in 2 steps." in model_card(run, checkpoint, "float32")


def test_training_with_labels_is_said(tmp_path: Path) -> None:
    labels = ("reward.labels=ground_truth", "reward.allow_ground_truth=true")
    assert "**It was trained with the reference answers**" in card_of(tmp_path / "run", *labels)


@pytest.mark.parametrize("hostile", HOSTILE)
def test_a_card_has_names_without_folders_and_as_text(tmp_path: Path, hostile: str) -> None:
    base = tmp_path / "private" / "base"
    base.mkdir(parents=True)
    code = tmp_path / "private" / "mine.py"
    valid = hostile.encode("utf-8", "replace").decode()
    suffix = json.dumps(valid, ensure_ascii=False).replace("\x7f", "")
    name = re.sub(r"[/\\\x00-\x1f\x7f]", "", valid)[:80]  # it names a folder
    text = card_of(
        tmp_path / "run",
        f"name={json.dumps(name, ensure_ascii=False)}",
        f"data.suffix={suffix}",
        f"model.path={base}",
        f"data.held_out={tmp_path}/private/exam.jsonl",
        f"reward.extra={{ '{code}:short' = 0.5 }}",
    )
    assert "private" not in text
    assert "| base model | base |" in text and "base_model" not in text
    assert "| reward.extra.mine.py:short | 0.5 |" in text
    card = ModelCard(text)
    assert card.data.to_dict()["pipeline_tag"] == "text-generation"
    head, body = text.split("\n---\n", 1)
    assert yaml.safe_load(head)["model-index"][0]["name"] == name
    assert re.search(r"(?<!\\)<", body) is None and "\n](" not in body
    (row,) = (line for line in body.splitlines() if line.startswith("| data.suffix |"))
    assert "](" not in row.replace("\\]", "")
    assert all(c.isprintable() for c in body.replace("\n", ""))


def test_a_run_is_told_by_what_decides_it(tmp_path: Path) -> None:
    def digest(*overrides: str) -> str:
        run = make_run(tmp_path / str(len(list(tmp_path.iterdir()))), [], overrides=overrides)
        return run_digest({"settings": run.settings.model_dump(mode="json"), "questions": "1f"})

    same = digest()
    assert digest("max_steps=9", "limits.eval_s=7") == same
    assert digest("seed=1") != same


# ---------------------------------------------------------------------------------------------
# The hub


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """An exported model, as far as it matters here."""
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "README.md").write_text(card_of(tmp_path / "run"))
    return folder


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> MagicMock:
    """The hub, where nothing is, and somebody who is logged in."""
    api: MagicMock = create_autospec(HfApi, instance=True)
    api.model_info.side_effect = RepositoryNotFoundError("404", response=MagicMock())
    api.upload_folder.return_value.commit_url = "https://hub/me/mine/commit/1"
    monkeypatch.setattr(hub, "HfApi", lambda: api)
    monkeypatch.setenv("HF_TOKEN", CANARY)
    return api


def holds(api: MagicMock, *files: str, private: bool = True, **card: str) -> None:
    """Let the repository be there."""
    api.model_info.side_effect = None
    siblings = [{"rfilename": name} for name in files]
    about = {"id": "me/mine", "sha": "5ha", "private": private, "tags": [], "siblings": siblings}
    api.model_info.return_value = ModelInfo(**about, cardData=card or None)


def untouched(api: MagicMock) -> bool:
    return not api.create_repo.called and not api.upload_folder.called


@pytest.mark.parametrize("public", [False, True])
def test_a_new_repository_is_private_unless_asked_for(
    api: MagicMock, model: Path, public: bool
) -> None:
    address = Repository.find("me/mine", public=public).push(model)
    assert address == "https://hub/me/mine/commit/1"
    api.create_repo.assert_called_once_with("me/mine", private=not public)
    asked_for = api.upload_folder.call_args.kwargs
    assert (asked_for["repo_id"], asked_for["folder_path"]) == ("me/mine", model)


def test_the_same_run_is_a_new_commit(api: MagicMock, model: Path) -> None:
    of_run = str(ModelCard.load(model / "README.md").data.get(RUN_KEY))
    theirs = ("adapters/own.safetensors", "eval [1].txt")
    old = ("model-[1].safetensors", "model.safetensors.index.json")
    holds(api, ".gitattributes", "README.md", *theirs, *old, ttrl_run=of_run)
    Repository.find("me/mine", public=False).push(model)
    assert not api.create_repo.called
    asked_for = api.upload_folder.call_args.kwargs
    assert asked_for["parent_commit"] == "5ha"
    there = [".gitattributes", "README.md", *theirs, *old]
    gone = filter_repo_objects(there, allow_patterns=asked_for["delete_patterns"])
    assert tuple(gone) == old


def test_what_is_hidden_stays_here_and_links_are_refused(api: MagicMock, model: Path) -> None:
    Repository.find("me/mine", public=False).push(model)
    hidden = (".env", "sub/.env", "config.json")
    taken = filter_repo_objects(
        hidden, ignore_patterns=api.upload_folder.call_args.kwargs["ignore_patterns"]
    )
    assert list(taken) == ["config.json"]
    (model / "notes.txt").symlink_to(model.parent / "elsewhere.txt")
    with pytest.raises(UserError, match=r"notes\.txt is a link to a file outside"):
        Repository.find("me/mine", public=False).push(model)
    assert api.upload_folder.call_count == 1


def test_a_card_that_is_no_yaml_is_refused(api: MagicMock, model: Path) -> None:
    (model / "README.md").write_text("---\na: [\n---\n")
    with pytest.raises(UserError, match="has no model card of `ttrl export`"):
        Repository.find("me/mine", public=False).push(model)
    assert untouched(api)


def test_whatever_the_http_client_raises_is_explained(api: MagicMock) -> None:
    api.whoami.side_effect = RuntimeError(f"no route, {CANARY}")
    with pytest.raises(UserError, match=r"--push me/mine: the hub says: no route, \*\*\*"):
        Repository.find("me/mine", public=False)


def test_a_token_that_is_none_is_not_shown(api: MagicMock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "get_token", lambda: f"{CANARY}\x1b")
    with pytest.raises(UserError, match="characters that no token has") as refused:
        Repository.find("me/mine", public=False)
    assert CANARY not in str(refused.value)


@pytest.mark.parametrize("card", [{}, {"ttrl_run": "another"}])
def test_another_model_is_never_written_over(
    api: MagicMock, model: Path, card: dict[str, str]
) -> None:
    holds(api, "model.safetensors", **card)
    found = Repository.find("me/mine", public=False)
    with pytest.raises(
        UserError, match=r"holds something else .* 'model\.safetensors'; nothing was"
    ):
        found.push(model)
    assert untouched(api)


def test_an_empty_repository_is_written_to(api: MagicMock, model: Path) -> None:
    holds(api, ".gitattributes")
    Repository.find("me/mine", public=False).push(model)
    assert api.upload_folder.called


@pytest.mark.parametrize(("private", "public"), [(True, True), (False, False)])
def test_who_may_read_a_repository_is_not_changed(
    api: MagicMock, private: bool, public: bool
) -> None:
    holds(api, private=private)
    with pytest.raises(UserError, match="that repository is p"):
        Repository.find("me/mine", public=public)


@pytest.mark.parametrize(
    "name", ["mine", "a/b/c", "/mine", "me/", "me/mi ne", "me/mine\n", "-/x", ""]
)
def test_what_is_no_name_is_refused(api: MagicMock, name: str) -> None:
    with pytest.raises(UserError, match="expected OWNER/NAME"):
        Repository.find(name, public=False)
    assert not api.method_calls


def test_nobody_is_logged_in(
    api: MagicMock, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(UserError, match="set HF_TOKEN in the environment"):
        Repository.find("me/mine", public=False)
    assert not api.method_calls


@pytest.mark.parametrize("lacks", ["config.json", "model.safetensors", "README.md"])
def test_what_is_no_exported_model_is_refused(api: MagicMock, model: Path, lacks: str) -> None:
    (model / lacks).unlink()
    with pytest.raises(UserError, match=r"is no model: expected|has no model card of"):
        Repository.find("me/mine", public=False).push(model)
    (model / "README.md").write_text("no front matter")
    with pytest.raises(UserError):
        Repository.find("me/mine", public=False).push(model)
    assert untouched(api)


def test_the_command_uploads_what_was_exported_before(
    api: MagicMock,
    model: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    code, out, _ = call(capsys, monkeypatch, "export", str(model), "--push", "me/mine")
    assert (code, out) == (0, "uploaded: https://hub/me/mine/commit/1\n")
    for arguments, said in (
        ([str(model)], "name the folder to make as well"),
        ([str(model), "--push", "me/mine", "--best"], "name OUTPUT as well"),
        ([str(model), "new", "--public"], "give that as well"),
        ([str(model.parent), "--push", "me/mine"], "is no model"),
    ):
        code, _, err = call(capsys, monkeypatch, "export", *arguments)
        assert code == 2 and said in err


@pytest.fixture
def repeating_hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A hub that refuses everything, and repeats the token that it was given; what it was given."""
    given: list[str] = []

    class Refusing(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            given.append(self.headers.get("Authorization", ""))
            said = json.dumps({"error": f"no: {given[-1]}"}).encode()
            self.send_response(403)
            self.send_header("X-Error-Message", f"no: {given[-1]}")
            self.send_header("Content-Length", str(len(said)))
            self.end_headers()
            self.wfile.write(said)

        def log_message(self, *said: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Refusing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
    monkeypatch.setenv("HF_TOKEN", CANARY)
    yield given
    server.shutdown()
    server.server_close()


def test_no_token_is_in_an_error_or_a_file(
    repeating_hub: list[str],
    model: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    code, out, err = call(capsys, monkeypatch, "export", str(model), "--push", "me/mine")
    assert set(repeating_hub) == {"", f"Bearer {CANARY}"}  # one without asks whether it is there
    assert code == 2 and "the hub says: " in err and "***" in err
    assert CANARY not in out + err
    for path in model.parent.rglob("*"):
        assert path.is_dir() or CANARY.encode() not in path.read_bytes()


def test_front_matter_is_what_the_hub_reads() -> None:
    """A name cannot end the front matter."""
    name = "a\n---\nevil: true"
    assert ModelCardData(model_name=name, tags=[name]).to_yaml().count("\n---") == 0
