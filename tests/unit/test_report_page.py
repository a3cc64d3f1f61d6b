"""The report's page: its numbers are the run's, and what a model wrote cannot leave its place."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
import struct
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from command_line import call
from groups import estimate, group
from report_runs import HOSTILE, answered, asked, hostile_run, long_run, recorded_run, small_run
from runs import make_run

from ttrl.answers import default_grader
from ttrl.report.page import history as history_module
from ttrl.report.page.drawing import refuse_active, smoothed, spec, svg, write_plots
from ttrl.report.page.figures import Figure, Series, figures, thinned
from ttrl.report.page.history import cut, spread
from ttrl.report.page.page import named_runs, page, title_of
from ttrl.report.rollouts import judged_line
from ttrl.report.run_record import RunRecord

REFERENCES = {"q1": "7", "q2": r"\frac{1}{2}", "q3": "30"}


class Scripts(HTMLParser):
    """The tags of a page, and its scripts by their id."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.scripts: dict[str | None, str] = {}
        self.attributes: list[tuple[str, str | None]] = []
        self._inside: str | None = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        self._inside = dict(attrs).get("id", "code") if tag == "script" else ""

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.scripts[self._inside] = self.scripts.get(self._inside, "") + data

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""


def html(*runs: RunRecord, references: dict[str, str] | None = None) -> str:
    return page(runs, [references or {}] * len(runs), default_grader())


def unpacked(packed: str) -> Any:
    return json.loads(gzip.decompress(base64.b64decode(packed)))


def test_numbers_behind_the_curves_are_the_metrics(tmp_path: Path) -> None:
    run = small_run(tmp_path / "run")
    data = json.loads(Scripts(html(run)).scripts["data"])
    found = {figure["key"]: figure for figure in data["figures"]}
    votes = [[1, 0.5], [2, 0.6], [3, 0.7]]
    assert found["votes"]["series"] == [{"name": "majority ratio", "run": "run", "points": votes}]
    sampled, trained_on = found["throughput"]["series"][0], len(found["throughput"]["series"])
    assert (sampled["points"], trained_on) == ([[1, 200.0], [2, 200.0], [3, 200.0]], 1)
    accuracy = {s["name"]: s["points"] for s in found["accuracy_train"]["series"]}
    assert accuracy == {"pass@1": [[0, 0.25], [3, 0.75]], "maj@4": [[0, 0.5], [3, 0.833333]]}
    assert found["accuracy_train"]["bounds"] == {"maj@4 of the starting model": 0.5}
    assert found["entropy"]["series"][0]["points"] == [[1, 1.0], [2, 0.5], [3, 0.333333]]


def test_what_all_agents_were_trained_on_is_the_throughput(tmp_path: Path) -> None:
    """30 and 50 tokens in 2 s, then 20 of the second agent alone in 1 s, then none."""
    lines = [
        {"policy/tokens": 30, "agent_1/tokens": 50, "time/update_s": 2.0},
        {"agent_1/tokens": 20, "time/update_s": 1.0},
        {"time/update_s": 1.0},
    ]
    drawn = figures(named_runs([make_run(tmp_path / "run", lines)]))
    (found,) = [figure for figure in drawn if figure.key == "throughput"]
    assert [series.name for series in found.series] == ["trained on"]
    assert found.series[0].points == ((1.0, 40.0), (2.0, 20.0))


def test_each_agents_policy_has_a_curve_beside_the_others(tmp_path: Path) -> None:
    """Of two metrics in one figure, each has its policies' side by side; of engines it has one."""
    lines = [
        {
            "mismatch/kl": 0.1,
            **{f"{p}/entropy": i + 0.5 for i, p in enumerate(("policy", "agent_1", "agent_10"))},
            **{f"{p}/sampler_kl": i + 0.25 for i, p in enumerate(("policy", "agent_1"))},
        },
        {"agent_1/entropy": 2.5},  # the others had nothing to learn
    ]
    drawn = {f.key: f for f in figures(named_runs([make_run(tmp_path / "run", lines)]))}
    curves = {series.name: series.points for series in drawn["entropy"].series}
    assert curves == {
        "agent 0": ((1.0, 0.5),),
        "agent 1": ((1.0, 1.5), (2.0, 2.5)),
        "agent 10": ((1.0, 2.5),),
    }
    names = [series.name for series in drawn["mismatch"].series]
    assert names == ["first update", "all updates, agent 0", "all updates, agent 1"]


def test_a_run_with_labels_beside_is_the_second_bound(tmp_path: Path) -> None:
    labels = ["reward.labels=ground_truth", "reward.allow_ground_truth=true"]
    first = small_run(tmp_path / "mine")
    second = small_run(tmp_path / "labels", *labels, shift=0.3)
    drawn = figures(named_runs([first, second]))[0]
    assert drawn.bounds == {
        "maj@4 of the starting model": 0.5,
        "trained with the labels (labels)": pytest.approx(0.85),
    }
    assert {series.run for series in drawn.series} == {"mine", "labels"}
    text = html(first, second)
    assert "≠ reward.labels" in text
    assert "≠ seed" not in text


def test_runs_are_named_by_what_tells_them_apart(tmp_path: Path) -> None:
    run = small_run(tmp_path / "any")

    def names(*paths: str) -> list[str]:
        return list(named_runs([replace(run, path=tmp_path / path) for path in paths]))

    assert names("runs/mine") == ["mine"]
    assert names("runs/mine", "runs/other") == ["mine", "other"]
    row = ("runs/row/ttrl/seed_0", "runs/row/labels/seed_0")
    assert names(*row) == ["ttrl/seed_0", "labels/seed_0"]
    assert names(*row, "runs/mine") == ["ttrl/seed_0", "labels/seed_0", "mine"]
    deep = names("a/x/run", "b/x/run", "b/y/run")
    assert deep == ["a/x/run", "b/x/run", "y/run"]


def test_a_row_of_many_seeds_can_be_read(tmp_path: Path) -> None:
    """Two colours, for votes and labels; one line for each bound; a title that is short."""
    labels = ["reward.labels=ground_truth", "reward.allow_ground_truth=true"]
    runs = [
        small_run(tmp_path / "row" / arm / f"seed_{seed}", f"seed={seed}", *more, shift=seed / 10)
        for seed in range(4)
        for arm, more in (("ttrl", []), ("labels", labels))
    ]
    named = named_runs(runs)
    accuracy = figures(named)[0]
    # 0.75, 1 and 0.5 + shift, whose mean over seeds is 0.15
    assert accuracy.bounds == {
        "maj@4 of the starting model": 0.5,
        "trained with the labels (mean of 4)": pytest.approx((0.75 + 1.0 + 0.65) / 3),
    }
    drawn = spec(accuracy)["layer"]
    assert drawn[0]["encoding"]["color"]["scale"]["domain"] == ["ttrl", "labels"]
    assert {row["group"] for row in drawn[0]["data"]["values"]} == {"ttrl", "labels"}
    assert {"field": "run"} in drawn[0]["encoding"]["detail"]  # a line for each, all the same
    assert drawn[1]["mark"]["opacity"] == 0.24 / 8
    assert title_of(named) == "row: 8 runs"
    assert title_of(dict(list(named.items())[:2])) == "ttrl/seed_0, labels/seed_0"


def test_other_starting_models_have_their_own_bounds(tmp_path: Path) -> None:
    first = small_run(tmp_path / "a")
    second = small_run(tmp_path / "b", "model.path=another")
    bounds = figures(named_runs([first, second]))[0].bounds
    assert bounds == {"maj@4 of the starting model": 0.5, "maj@4 of the starting model (b)": 0.5}


def test_the_drawn_values_are_those_of_the_figure(tmp_path: Path) -> None:
    figure = figures({"run": small_run(tmp_path / "run")})[0]
    lines, band, rule, name = spec(figure)["layer"]
    drawn = [(row["x"], row["y"]) for row in lines["data"]["values"] if row["name"] == "pass@1"]
    assert drawn == [(0, 0.25), (3, 0.75)]
    mean, half = 0.25, 1.959964 * 0.25 / 3**0.5
    assert band["data"]["values"][0]["y"] == pytest.approx(max(0, mean - half), abs=1e-6)
    assert band["data"]["values"][0]["y2"] == pytest.approx(mean + half, abs=1e-6)
    assert rule["data"]["values"] == name["data"]["values"]
    tree = ElementTree.fromstring(svg(figure))
    texts = {element.text for element in tree.iter() if element.tag.endswith("text")}
    assert texts >= {"pass@1", "maj@4", "maj@4 of the starting model", "step"}


def test_a_long_curve_is_drawn_with_its_running_mean() -> None:
    points = tuple((float(i), float(i % 2)) for i in range(1, 401))
    means = smoothed(points)
    assert [x for x, _ in means] == [x for x, _ in points]
    assert means[0] == (1.0, 0.6)  # of itself and the four behind it, 1 0 1 0 1
    assert means[199][1] == pytest.approx(4 / 9)
    figure = Figure("k", "t", "", (Series("s", "r", points),))
    pale, bold = spec(figure)["layer"]
    assert [row["y"] for row in pale["data"]["values"]] == [y for _, y in points]
    assert [row["y"] for row in bold["data"]["values"]] == [y for _, y in means]
    assert pale["mark"]["opacity"] < 1


@pytest.mark.parametrize(
    ("domain", "ticks"),
    [((1, 3), [1, 2, 3]), ((0, 6), list(range(7))), ((1, 1000), [200, 400, 600, 800, 1000])],
)
def test_steps_at_the_axis_are_whole(domain: tuple[int, int], ticks: list[int]) -> None:
    figure = Figure("k", "t", "", (Series("s", "r", tuple((float(x), 0.0) for x in domain)),))
    assert spec(figure)["layer"][0]["encoding"]["x"]["axis"]["values"] == ticks


def test_plots_are_files_that_are_what_they_say(tmp_path: Path) -> None:
    drawn = figures({"run": small_run(tmp_path / "run")})[:2]
    written = write_plots(drawn, tmp_path / "plots")
    assert [path.name for path in written] == [
        "accuracy_train.svg", "accuracy_train.png", "votes.svg", "votes.png",
    ]  # fmt: skip
    assert drawn[0].title in written[0].read_text()
    head = written[1].read_bytes()[:24]
    width, height = struct.unpack(">II", head[16:24])
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    assert (width, height) == (760, 480)


@pytest.mark.parametrize(
    "drawn", ["<svg><script/></svg>", "<svg><a/></svg>", "<svg><g onload='x'/></svg>"]
)
def test_an_active_svg_is_refused(drawn: str) -> None:
    with pytest.raises(ValueError, match="an SVG with"):
        refuse_active(drawn)


def test_visits_say_what_was_wrong_flipped_and_tied(tmp_path: Path) -> None:
    kept = history_module.history(small_run(tmp_path / "run"), REFERENCES, default_grader())
    found = {q["id"]: q for q in unpacked(kept.questions)["questions"]}
    assert {name: q["reference"] for name, q in found.items()} == REFERENCES
    flags = {name: [visit[3] for visit in q["visits"]] for name, q in found.items()}
    right, flipped = [False, False, False, False], [True, True, True, False]
    assert flags["q1"] == [right, flipped, [False, True, False, False]]
    assert flags["q2"] == [right, [False, False, False, True], right]  # 0.5 is 1/2
    assert flags["q3"] == [[True, *right[1:]]] * 2 + [[True, False, True, False]]
    assert found["q1"]["visits"][0] == [
        1,
        "7",
        [4, 0, 0.75],
        right,
        [["7", 3, True], ["70", 1, False]],
    ]
    texts = unpacked(kept.texts[3])
    assert texts["answers"]["q3"][0] == ["So \\boxed{31}.", "31", 4, False, 1.0, False]
    assert texts["answers"]["q3"][3][3] is True
    assert list(unpacked(kept.questions)["formulas"]) == ["x^2", r"\frac{1}{2}", r"\frac120"]


def test_what_the_run_could_not_decide_is_not_judged_anew(tmp_path: Path) -> None:
    """The page's own grader has more time, or less."""
    sampled = group("1", "2", "3", "2", id="q")
    vote = replace(estimate(sampled).vote, undecided=2, tied=True)
    line = judged_line(sampled, replace(estimate(sampled), vote=vote))
    run = recorded_run(tmp_path / "run", {1: [line]}, [{}])
    (read,) = run.groups(1)
    assert (read.tied, read.undecided) == (True, 2)
    seen = history_module.visit(1, read, default_grader())
    assert (seen.tied, seen.undecided) == (True, True)


def test_without_an_answer_key_nothing_is_right_or_wrong(tmp_path: Path) -> None:
    kept = history_module.history(small_run(tmp_path / "run"), {}, default_grader())
    for question in unpacked(kept.questions)["questions"]:
        assert [visit[3][0] for visit in question["visits"]] == [None] * 3


def test_hostile_text_stays_in_its_place(tmp_path: Path) -> None:
    run = hostile_run(tmp_path / "run")
    parsed = Scripts(html(run, references={f"q0 {HOSTILE[0]}": HOSTILE[2]}))
    blocks = {"data", "packed-0-questions", "packed-0-1", "packed-0-2", "code"}
    assert parsed.scripts.keys() == blocks
    assert parsed.tags.count("script") == len(blocks)
    assert not {"img", "iframe", "object"} & set(parsed.tags)
    assert not [name for name, _ in parsed.attributes if name.startswith("on")]
    links = [value for name, value in parsed.attributes if name in ("href", "src", "action")]
    assert links == ["#main", "#curves", "#questions", "#settings"]
    for block in blocks - {"data", "code"}:
        assert re.fullmatch(r"[A-Za-z0-9+/=]+", parsed.scripts[block])
    texts = unpacked(parsed.scripts["packed-0-1"])["answers"]
    assert [lines[0][0] for lines in texts.values()] == list(HOSTILE)  # surrogates, too


def test_the_policy_allows_this_code_and_no_network(tmp_path: Path) -> None:
    text = html(small_run(tmp_path / "run"))
    found = re.search(r'Policy" content="([^"]*)"', text)
    assert found is not None
    policy = found[1].replace("&#39;", "'")
    code = Scripts(text).scripts["code"]
    digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
    assert policy.startswith(
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'sha256-"
    )
    assert "unsafe" not in policy
    assert "http" not in policy


def test_a_page_of_1000_steps_is_small_and_says_what_it_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = long_run(tmp_path / "run")
    assert len(html(run)) < 20_000_000
    monkeypatch.setattr(history_module, "TEXTS", 200_000)
    monkeypatch.setattr(history_module, "HISTORIES", 20_000)
    kept = history_module.history(run, {}, default_grader())
    assert len(kept.questions) <= 20_000
    assert sum(map(len, kept.texts.values())) <= 200_000
    assert 10 < len(kept.texts) < 1000
    assert {1, 500, 1000} <= kept.texts.keys()
    assert kept.notes[0].startswith(f"The texts of {len(kept.texts)} of 1000 steps fit")
    assert re.match(r"Of each question the \d+ newest visits", kept.notes[1])


def test_steps_are_kept_evenly_and_texts_at_both_ends() -> None:
    assert list(spread([1, 2, 3, 4, 5])) == [5, 1, 3, 2, 4]
    assert list(spread([7])) == [7]
    assert list(spread([])) == []
    assert cut("abcdef", 4) == "ab\n[… 2 characters are left out …]\nef"
    curve = thinned([(float(i), float(i)) for i in range(1, 4001)])
    assert len(curve) == 1000
    assert curve[0] == (2.5, 2.5)


def test_a_file_that_cannot_be_read_is_a_note(tmp_path: Path) -> None:
    run = small_run(tmp_path / "run")
    (run.path / "rollouts" / "step_00002.jsonl").write_text("{")
    kept = history_module.history(run, {}, default_grader())
    assert sorted(kept.texts) == [1, 3]
    assert "step_00002.jsonl, line 1" in kept.notes[0]


def test_a_run_without_a_step_or_a_judged_vote_has_a_page(tmp_path: Path) -> None:
    group = asked("q1", "p", "7", [answered("x", None)])
    del group["label"]
    run = recorded_run(tmp_path / "run", {1: [group]}, [])
    text = html(run)
    assert "Nothing has been measured yet." in text
    (question,) = unpacked(Scripts(text).scripts["packed-0-questions"])["questions"]
    assert question["visits"] == []


def test_the_command_writes_pages_and_plots(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = small_run(tmp_path / "run").path
    code, out, _ = call(capsys, monkeypatch, "report", str(run), "--plots", str(tmp_path / "p"))
    assert (code, out.splitlines()[0]) == (0, str(run / "report.html"))
    assert (
        len(list((tmp_path / "p").glob("*.png"))) == len(list((tmp_path / "p").glob("*.svg"))) > 5
    )
    for wrong, message in (
        (("--out", str(tmp_path / "no" / "x.html")), "there is no folder"),
        (("--out", str(tmp_path)), "is a folder"),
        ((str(run),), "named twice"),
    ):
        code, _, error = call(capsys, monkeypatch, "report", str(run), *wrong)
        assert code == 2
        assert message in error
