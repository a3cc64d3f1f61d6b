"""``ttrl reproduce``: its stages, what it skips and refuses, and its numbers by hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from command_line import call
from results import result
from runs import make_run

from ttrl.commands import reproduce as command
from ttrl.commands.reproduce import parse_seeds
from ttrl.report.results import results_json
from ttrl.reproduce.experiment import OF_A_BENCHMARK, DataSet, Experiment, out_of_domain
from ttrl.reproduce.row import Figure, Measured
from ttrl.reproduce.stages import remaining, run_stages, stages
from ttrl.settings.recipe import load_settings
from ttrl.types import UserError

SETTINGS = load_settings("tiny-arithmetic", overrides=["evaluation.every=10"])
OTHER = DataSet("more.jsonl", "more.jsonl", {})
SAMPLING = {"samples": 16, "temperature": 1.0, "top_p": 1.0, "max_new_tokens": 80}


def option(arguments: Sequence[str], name: str) -> list[str]:
    """The values of an option."""
    return [arguments[i + 1] for i, argument in enumerate(arguments) if argument == name]


class Fake:
    """Plays ``ttrl``: counts what it is asked for, and leaves results of known figures."""

    def __init__(self, fail_at: int | None = None, code: int = 1) -> None:
        self.asked: list[tuple[str, ...]] = []
        self.fail_at, self.code = fail_at, code

    def __call__(self, arguments: Sequence[str]) -> int:
        self.asked.append(tuple(arguments))
        if arguments[0] == "report":
            return 0
        seed = int(next(v for v in option(arguments, "--set") if v.startswith("seed="))[5:])
        failing = len(self.asked) == self.fail_at
        if arguments[0] == "eval":
            partial = Path(option(arguments, "--json")[0])
            if failing:
                partial.write_text("{")
                return self.code
            score = 0.25 if "/model" not in arguments[1] else 0.5
            sampling = {**SAMPLING, "seed": seed}
            measured = result(arguments[1], [score] * 2, arguments[2], None, sampling)
            assert not partial.exists()
            partial.write_text(results_json([measured]))
            return 0
        run = Path(option(arguments, "--run-dir")[0])
        if "--resume" in arguments:
            (run / "summary.json").write_text('{"steps": 1, "stopped": null, "wall_s": 60.0}')
            return 0
        labels = "labels" in run.parts
        after = [0.75, 1.0] if labels else [0.5, 0.75 + seed / 8]
        make_run(
            run,
            [{"vote/majority_ratio": 0.5}],
            {0: {"train": [0.25, 0.25]}, 1: {"train": after}},
            option(arguments, "--set"),
            None if failing else {"steps": 1, "stopped": None, "wall_s": 60.0},
            arguments[1],
        )
        if failing:
            (run / "checkpoints" / "step_00010").mkdir(parents=True)
        return self.code if failing else 0


def experiment(folder: Path, **changes: Any) -> Experiment:
    made = replace(Experiment(folder, SETTINGS, (0,), labels=True), **changes)
    made.refuse_other()
    made.prepare()
    return made


def test_stages_of_one_seed(tmp_path: Path) -> None:
    recipe = str(tmp_path / "recipe.toml")
    every = stages(experiment(tmp_path, others=(OTHER,), ranks=2))
    asked = ("more.jsonl", "--recipe", recipe, "--k", "16", "--set", "seed=0")
    ending = ("--set", "evaluation.greedy=false", "--ranks", "2")
    given = ("--set", "seed=0", "--set", 'reward.labels="ground_truth"')
    assert [(s.kind, s.result.relative_to(tmp_path).as_posix(), s.arguments) for s in every] == [
        (
            "run",
            "ttrl/seed_0/summary.json",
            ("train", recipe, "--set", "seed=0", "--ranks", "2"),
        ),
        (
            "run",
            "labels/seed_0/summary.json",
            ("train", recipe, *given, "--set", "reward.allow_ground_truth=true", "--ranks", "2"),
        ),
        (
            "evaluation",
            "evaluations/seed_0_before_more.jsonl.json",
            ("eval", "tiny-base", *asked, *ending),
        ),
        (
            "evaluation",
            "evaluations/seed_0_after_more.jsonl.json",
            ("eval", str(tmp_path / "ttrl/seed_0/model"), *asked, *ending),
        ),
    ]
    titles = [s.title for s in stages(experiment(tmp_path, seeds=(3, 5), labels=False))]
    assert titles == ["train on votes, seed 3", "train on votes, seed 5"]


def test_the_votes_arm_never_sees_labels(tmp_path: Path) -> None:
    made = experiment(tmp_path)
    assert "ground_truth" not in made.recipe.read_text().replace("allow_ground_truth = false", "")
    ours, theirs = made.settings_of("ttrl", 4), made.settings_of("labels", 4)
    assert (ours.reward.labels, ours.reward.allow_ground_truth, ours.seed) == ("votes", False, 4)
    flat = theirs.flat()
    differ = {k: flat[k] for k in flat if flat[k] != ours.flat()[k]}
    assert differ == {"reward.labels": "ground_truth", "reward.allow_ground_truth": True}


def test_an_interrupted_experiment_makes_only_what_is_missing(tmp_path: Path) -> None:
    made = experiment(tmp_path, others=(OTHER,))
    said: list[str] = []
    first = Fake(fail_at=2)
    with pytest.raises(UserError, match=r"stage 2 of 4: train with the labels, seed 0: .* 1,"):
        run_stages(stages(made), first, said.append)
    assert [a[0] for a in first.asked] == ["train", "train"]
    made.refuse_other()
    second = Fake(fail_at=3, code=130)
    with pytest.raises(KeyboardInterrupt):
        run_stages(stages(made), second, said.append)
    assert [(a[0], "--resume" in a) for a in second.asked] == [
        ("train", True),
        ("eval", False),
        ("eval", False),
    ]
    assert option(second.asked[0], "--run-dir") == [str(tmp_path / "labels/seed_0")]
    third = Fake()
    run_stages(stages(made), third, said.append)
    assert [a[1] for a in third.asked] == [str(tmp_path / "ttrl/seed_0/model")]
    fourth = Fake()
    run_stages(stages(made), fourth, said.append)
    assert fourth.asked == []
    assert said[0] == "stage 1 of 4: train on votes, seed 0"
    assert said[-1] == "stage 4 of 4: measure more.jsonl after, seed 0: done"
    assert not list(tmp_path.rglob("*.partial"))


def test_a_run_without_a_checkpoint_is_made_anew(tmp_path: Path) -> None:
    made = experiment(tmp_path)
    run = made.run("ttrl", 0)
    make_run(run, [], overrides=["evaluation.every=10"])
    (run / "of_before").touch()
    fake = Fake()
    run_stages(stages(made), fake, print)
    assert "--resume" not in fake.asked[0]
    assert (run / "summary.json").exists() and not (run / "of_before").exists()


def test_how_long_it_will_take() -> None:
    assert remaining(["run", "evaluation"], {}) == ""
    assert remaining(["run", "run"], {"run": [60.0, 120.0]}) == " (to the end about 3 min)"
    left = remaining(["run", "evaluation", "evaluation"], {"run": [50.0]})
    assert left == " (to the end about 50 s and 2 evaluations)"


def test_other_settings_are_refused(tmp_path: Path) -> None:
    made = experiment(tmp_path, others=(OTHER,))
    run_stages(stages(made), Fake(), print)
    before = made.recipe.read_text()
    memory = load_settings(
        "tiny-arithmetic", overrides=["evaluation.every=10", "memory.tokens_per_batch=4096"]
    )
    experiment(tmp_path, others=(OTHER,), settings=memory)  # how it is done, not what
    made.prepare()
    longer = load_settings("tiny-arithmetic", overrides=["evaluation.every=10", "epochs=9"])
    with pytest.raises(UserError, match=r"ttrl/seed_0: epochs was 7, now 9"):
        experiment(tmp_path, settings=longer)
    fewer = load_settings(
        "tiny-arithmetic", overrides=["evaluation.every=10", "evaluation.samples=4"]
    )
    with pytest.raises(UserError, match=r"evaluations/seed_0_before.*'samples': 16.*'samples': 4"):
        experiment(tmp_path, settings=fewer, others=(OTHER,))
    moved = DataSet("more.jsonl", "elsewhere/more.jsonl", {})
    with pytest.raises(UserError, match=r"seed_0_after_more.*elsewhere/more.jsonl"):
        experiment(tmp_path, others=(moved,))
    assert made.recipe.read_text() == before
    with pytest.raises(UserError, match="is the folder of a run"):
        experiment(tmp_path / "ttrl" / "seed_0")


def test_the_other_benchmarks_are_out_of_domain() -> None:
    settings = load_settings("aime24", model="qwen2.5-math-7b")
    found = {data.name: data for data in out_of_domain(settings, None)}
    assert sorted(found) == ["amc", "gpqa", "math500"]
    assert found["amc"].settings == {"data.max_prompt_tokens": 1024}
    assert found["math500"].settings == {
        "data.split": "test",
        "data.id_field": "unique_id",
        "data.max_prompt_tokens": 1024,
    }
    assert found["gpqa"].settings["answers.extract"] == "choice"
    assert out_of_domain(SETTINGS, None) == ()
    assert out_of_domain(SETTINGS, ["mine.jsonl"]) == (DataSet("mine.jsonl", "mine.jsonl", {}),)
    with pytest.raises(UserError, match="measures these questions itself"):
        out_of_domain(SETTINGS, ["arithmetic:held_out"])


def test_before_is_measured_as_the_run_measures(tmp_path: Path) -> None:
    """A model's name brings the settings of its recipe, which a user has changed."""
    given = ["data.suffix= Think.", "evaluation.temperature=0.3", "model.revision=abc"]
    settings = load_settings("aime24", model="qwen2.5-math-7b", overrides=given)
    made = experiment(
        tmp_path, settings=settings, labels=False, seeds=(2,), others=out_of_domain(settings, None)
    )
    for stage in stages(made)[1:]:
        recipe, sets = str(made.recipe), option(stage.arguments, "--set")
        asked = load_settings(
            recipe, model=stage.arguments[1], data=stage.arguments[2], overrides=sets
        ).flat()
        before = stage.arguments[1] == settings.model.path
        assert asked["model.revision"] == ("abc" if before else None)
        assert asked["data.suffix"] == " Think." and asked["evaluation.temperature"] == 0.3
        assert asked["seed"] == 2
        differ = {k for k, v in settings.flat().items() if asked[k] != v}
        named = {"name", "seed", "model.path", "model.revision", "data.train"}
        assert differ - named <= set(OF_A_BENCHMARK)


def test_the_numbers_of_a_row_by_hand() -> None:
    at = ["1", "2"]
    measured = Measured(
        "q.jsonl",
        "trained on",
        before=[
            result("base", [0.0, 0.5], levels=at, maj_2=[0.0, 0.0], maj_4=[0.0, 1.0]),
            result("base", [0.25, 0.25], levels=at, maj_2=[0.0, 0.0], maj_4=[0.5, 0.5]),
        ],
        after=[result("a", [0.5, 1.0], levels=at), result("b", [0.25, 0.75], levels=at)],
        with_labels=[result("c", [1.0, 1.0], levels=at), result("d", [0.5, 1.0], levels=at)],
    )
    row = measured.numbers()
    # Questions over seeds: before 0.125 and 0.375, after 0.375 and 0.875, gains 0.25 and 0.5.
    # Of two values that differ by d, 1.96·s/√2 = 1.96·d/2.
    half = 1.959964 / 2
    assert row.count == 2
    close(row.before, 0.25, half * 0.25, 0.0)
    close(row.after, 0.625, half * 0.5, 0.25 / 2**0.5)
    close(row.gain, 0.375, half * 0.25, 0.25 / 2**0.5)  # of the seeds: 0.5 and 0.25
    assert row.relative_gain == 1.5
    assert measured.vote == "maj@4" and row.votes is not None and row.with_labels is not None
    close(row.votes, 0.5, half * 0.5, 0.0)
    close(row.with_labels, 0.875, half * 0.25, 0.25 / 2**0.5)
    assert row.tokens_before is None
    hard = measured.numbers("2")
    assert (hard.count, hard.gain.value, hard.gain.half_width) == (1, 0.5, None)
    assert Figure(0.625, 0.5, 0.25).text() == "62.5 ± 50.0 (sd 25.0)"
    assert Figure(0.375, None, None).text(sign=True) == "+37.5"


def close(found: Figure, value: float, half_width: float, sd: float) -> None:
    assert (found.value, found.half_width, found.sd_of_seeds) == pytest.approx(
        (value, half_width, sd), abs=1e-6
    )


def test_seeds_on_other_questions_have_no_mean() -> None:
    row = Measured(
        "q",
        "held out",
        [result("base", [0.0, 0.5]), result("base", [0.0])],
        [result("a", [0.0, 0.5]), result("a", [0.0])],
    )
    with pytest.raises(UserError, match="the seeds were measured on different questions"):
        row.numbers()


@pytest.mark.parametrize(
    ("text", "seeds"), [("1", (0,)), ("3", (0, 1, 2)), ("0,7", (0, 7)), ("7,", (7,))]
)
def test_seeds(text: str, seeds: tuple[int, ...]) -> None:
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["0", "", ",", "a", "-1", "1,1", "1.5", "²"])
def test_no_seeds(text: str) -> None:
    with pytest.raises(UserError, match="--seeds"):
        parse_seeds(text)


def test_a_row_from_the_command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake = Fake()
    monkeypatch.setattr(command, "ttrl", fake)
    more = tmp_path / "more.jsonl"
    more.write_text('{"prompt": "What is 1 + 1?", "answer": "2"}\n')
    row = tmp_path / "row"
    asked = ("reproduce", "tiny-arithmetic", "--seeds", "2", "--ood", str(more))
    code, out, err = call(capsys, monkeypatch, *asked, "--run-dir", str(row))
    assert (code, err) == (0, "")
    assert [a[0] for a in fake.asked if a[0] != "report"] == ["train", "train", "eval", "eval"] * 2
    # 7 passes of 128 questions, 16 a step, are 56 steps: measured six times on the way
    run = load_settings(str(row / "ttrl" / "seed_1" / "config.toml"))
    assert (run.evaluation.every, run.seed, run.reward.labels) == (10, 1, "votes")
    found = json.loads((row / "result.json").read_text())
    trained, other = found["rows"]
    assert (trained["questions"], trained["role"]) == ("arithmetic:train", "trained on")
    # seed 0: 0.5 and 0.75; seed 1: 0.5 and 0.875
    assert trained["after"]["value"] == 0.65625 and trained["gain"]["value"] == 0.40625
    assert trained["with_labels"]["value"] == 0.875 and trained["relative_gain"] == 1.625
    assert (other["role"], other["gain"]["value"]) == ("out of domain", 0.25)
    assert other["with_labels"] is None
    assert "|  | arithmetic:train (trained on, 2) | " in (row / "result.md").read_text()
    (shown,) = (line for line in out.splitlines() if "before " in line and "25.0 ±" in line)
    assert shown.split("│")[2].split()[:3] == ["25.0", "±", "0.0"]
    for name in ("result.md", "result.tex"):
        assert "65.6" in (row / name).read_text()
    (refused,) = call(capsys, monkeypatch, *asked, "--run-dir", str(row), "--set", "epochs=2")[2:]
    assert "begun with other settings" in refused and "epochs was 7, now 2" in refused


def unlabeled_questions(folder: Path) -> Path:
    path = folder / "unlabeled.jsonl"
    rows = [json.dumps({"prompt": f"What is {i} + 1?"}) + "\n" for i in range(16)]
    path.write_text("".join(rows))
    return path


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (["--set", "seed=3"], "--seeds says which seeds"),
        (["--set", "reward.allow_ground_truth=true"], "trains with the labels"),
        (["--ood", "absent.jsonl"], "absent.jsonl"),
        (["--set", "data.train=UNLABELED", "--set", "data.held_out=none"], "nothing to measure"),
        (["--ood", "UNLABELED"], "no row has an answer to measure against"),
        (["--set", "reward.labels=harmony", "--set", "harmony.votes=4"], "--no-labels"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_made(
    given: list[str],
    why: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(command, "ttrl", pytest.fail)
    unlabeled = unlabeled_questions(tmp_path)
    given = [text.replace("UNLABELED", str(unlabeled)) for text in given]
    row = tmp_path / "row"
    code, _, err = call(
        capsys, monkeypatch, "reproduce", "tiny-arithmetic", *given, "--run-dir", str(row)
    )
    assert code == 2 and why in err
    assert not row.exists()


def test_without_answers_no_run_is_trained_with_labels(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake = Fake()
    monkeypatch.setattr(command, "ttrl", fake)
    unlabeled = unlabeled_questions(tmp_path)
    code, out, err = call(
        capsys,
        monkeypatch,
        *("reproduce", "tiny-arithmetic", "--set", f"data.train={unlabeled}"),
        *("--run-dir", str(tmp_path / "row")),
    )
    assert (code, err) == (0, "")
    assert "no reference answers: no run is trained with labels" in out
    assert [a[0] for a in fake.asked if a[0] != "report"] == ["train"]
