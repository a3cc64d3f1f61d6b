"""Every command that README.md and docs/ show: run, or gone as far with as this machine can.

They run in a folder that has what they name: recipe.toml as README.md shows it, questions, runs.
A command of a kind that `KINDS` does not list fails; so does one that nothing here reads.
"""

from __future__ import annotations

import ast
import json
import re
import shlex
import sys
import tomllib
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer
from command_line import call
from plans import CONFIGS
from report_runs import small_run
from results import result

from ttrl import cli
from ttrl.commands.reproduce import parse_seeds
from ttrl.models.pretrained import load_bare_outline
from ttrl.settings.recipe import load_settings

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
STAND_FOR = {"MODEL": "tiny-base", "DATA...": "aime.jsonl"}
"""What a page writes for whatever the reader has, and what is taken for it."""
FILES = ("questions", "test", "aime", "amc", "math")
Call = Callable[..., tuple[int, str, str]]


class Command(NamedTuple):
    """A command of a page."""

    place: str
    """README.md:68"""
    words: tuple[str, ...]
    """As a shell would split it, without its comment."""


def commands() -> list[Command]:
    """All commands of the pages."""
    return [command for page in PAGES for command in commands_of(page.read_text(), page.name)]


def commands_of(text: str, page: str) -> Iterator[Command]:
    """Those of a page: its blocks, indented or fenced, that begin with the name of a program."""
    shell: dict[str, str] = {}
    for number, block in blocks(text):
        if not PROGRAM.match(block[0]):
            continue
        line, first = "", number
        for at, part in enumerate(block, number):
            line, first = line + part, first if line else at
            if part.endswith("\\"):
                line = line[:-1]
                continue
            words = [word for w in shlex.split(line, comments=True) for word in expanded(w, shell)]
            words = words[: words.index("<")] if "<" in words else words  # a file as its input
            if (named := re.fullmatch(r"([A-Z]+)=(.*)", words[0] if words else "")) is not None:
                shell[named[1]] = named[2]
            elif words:
                program = words[0].removeprefix(".venv/bin/")
                yield Command(f"{page}:{first}", (program, *words[1:]))
            line = ""


PROGRAM = re.compile(
    r"([A-Z]+=\S|\$|(\.venv/bin/)?(ttrl|bash|sh|python3?|make|pip|uv|npm|docker|git|torchrun|"
    r"deepspeed|mkdocs|tensorboard|sbatch|srun|curl|cd|export|source)\b)"
)


def expanded(word: str, shell: dict[str, str]) -> list[str]:
    return shlex.split(shell[word[1:]]) if word.startswith("$") else [word]


def blocks(text: str) -> Iterator[tuple[int, list[str]]]:
    """(number of the first line, lines) of each block of code without a language, or a shell's."""
    block: list[str] = []
    first, fence = 0, None
    for number, line in enumerate([*text.splitlines(), ""], start=1):
        if line.startswith("```"):
            fence = None if fence is not None else line[3:].strip()
            inside = False
        else:
            inside = fence in ("", "bash", "sh", "console") or (
                fence is None and line.startswith("    ")
            )
        if inside and line.strip():
            block, first = [*block, line.strip()], first or number
        elif block:
            yield first, block
            block, first = [], 0


# ---------------------------------------------------------------------------------------------
# Where they run, and how far


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder, with all that the pages name in it."""
    folder = tmp_path_factory.mktemp("user")
    toml = [b for b in fenced((ROOT / "README.md").read_text(), "toml") if "questions_per" in b]
    (folder / "recipe.toml").write_text(toml[0])
    python = fenced((ROOT / "docs" / "estimators.md").read_text(), "python")
    (folder / "own.py").write_text(next(code for code in python if "class Brief" in code))
    (folder / "editors.py").write_text(
        fenced((ROOT / "docs" / "agents.md").read_text(), "python")[0]
    )
    for name in FILES:
        row = {"prompt": "What is 12 + 34?", "answer": "46"}
        (folder / f"{name}.jsonl").write_text(f"{json.dumps(row)}\n" * 16)
    (folder / "config.json").write_bytes((CONFIGS / "qwen3-8b.json").read_bytes())
    small_run(folder / "runs" / "mine")
    small_run(folder / "runs" / "other", "seed=1", shift=0.1)
    small_run(folder / "runs" / "labels", "seed=2")
    (folder / "bench").symlink_to(ROOT / "bench")
    return folder


def fenced(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


@pytest.fixture
def ttrl(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Call]:
    """``ttrl ...`` in a user's folder: no network, no other process, no model is sampled from."""
    monkeypatch.chdir(place)

    def measure(asking: Any, model: str, **_: Any) -> list[Any]:
        return [result(model, [0.25, 0.75], data=data) for data in asking.data]

    def measured_before(path: Path, data: Sequence[str]) -> list[Any]:
        """What an earlier command of the page has written."""
        return [result(path.stem, [0.5, 0.5], data=name) for name in data]

    monkeypatch.setattr("ttrl.commands.evaluate.Asking.measure", measure)
    monkeypatch.setattr("ttrl.evaluation.measuring.measured_before", measured_before)
    monkeypatch.setattr("ttrl.commands.evaluate.launch", lambda *_: sys.exit(0))
    monkeypatch.setattr("ttrl.models.pretrained.load_bare_outline", outline)
    yield lambda *words: call(capsys, monkeypatch, *words)
    for made in place.glob("*.json"):
        if made.name != "config.json":
            made.unlink()


def outline(settings: Any) -> Any:
    """The outline of a model of the hub, by a copy of its config.json."""
    copy = CONFIGS / f"{settings.path.rpartition('/')[2].lower()}.json"
    path = str(copy) if copy.exists() else settings.path
    return load_bare_outline(settings.model_copy(update={"path": path}))


def goes_through(ttrl: Call, words: Sequence[str]) -> None:
    """Run it."""
    code, _, err = ttrl(*words)
    assert code == 0, err


def plans(ttrl: Call, words: Sequence[str]) -> None:
    """Run it; that a plan does not fit is an answer, too."""
    code, _, err = ttrl(*words)
    assert code == 0 or (code == 1 and err.startswith("ttrl: does not fit: ")), err


def parses(ttrl: Call, words: Sequence[str]) -> dict[str, Any]:
    """Let the command line read its arguments; return them."""
    group: Any = typer.main.get_command(cli.app)
    command = group.commands[words[0]]
    found: dict[str, Any] = command.make_context(words[0], list(words[1:])).params
    return found


def is_checked(ttrl: Call, words: Sequence[str]) -> None:
    """Check recipe, settings, estimator and files of user code."""
    goes_through(ttrl, [*words, "--dry-run"])


def begins_a_row(ttrl: Call, words: Sequence[str]) -> None:
    """Check recipe, settings and seeds."""
    given = parses(ttrl, words)
    assert parse_seeds(given["seeds"])
    load_settings(given["recipe"], model=given["model"], overrides=given["overrides"] or [])


def trains(ttrl: Call, words: Sequence[str]) -> None:
    """Do what scripts/run_ttrl.sh does behind its setup."""
    recipe = [] if words and not words[0].startswith("-") else ["tiny-arithmetic"]
    is_checked(ttrl, ["train", *recipe, *words])


def is_an_extra(ttrl: Call, words: Sequence[str]) -> None:
    """Look for the names of extras."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    named = [name for word in words for name in re.findall(r"[\w-]+", word)]
    assert {name for name in named if name not in ("install", "ttrl")} <= set(extras)


def asks(ttrl: Call, words: Sequence[str]) -> None:
    """Look for the address of a server, and read what is sent to it."""
    address = words[-1].removeprefix("http://127.0.0.1:8000")
    assert f'Route("{address}"' in (ROOT / "ttrl" / "serve" / "app.py").read_text()
    assert json.loads(words[words.index("-d") + 1]).keys() == {"prompt"}


def has_options(ttrl: Call, words: Sequence[str]) -> None:
    """Look for the program, and in it for its options."""
    tree = ast.parse((ROOT / words[0]).read_text())
    known = {
        arg.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("add_argument")
        for arg in node.args
        if isinstance(arg, ast.Constant)
    }
    assert {word for word in words if word.startswith("--")} <= known
    settings = [value for name, value in pairwise(words) if name == "--set"]
    load_settings("tiny-arithmetic", overrides=settings)


def has_files(ttrl: Call, words: Sequence[str]) -> None:
    """Look for the files that are named."""
    assert [word for word in words if "/" in word and not (ROOT / word).exists()] == []


class Kind(NamedTuple):
    """A kind of command."""

    check: Callable[[Call, Sequence[str]], object]
    """What is done with it here, without the words that name the kind; ttrl's and Python's keep
    the second."""
    really: str
    """The test that does all of it, or why there is none."""


KINDS = {
    ("ttrl", "train"): Kind(is_checked, "tests/e2e/test_train.py, tests/e2e/test_resume.py"),
    ("ttrl", "eval"): Kind(goes_through, "tests/unit/test_evaluate.py"),
    ("ttrl", "serve"): Kind(parses, "tests/e2e/test_serve.py"),
    ("ttrl", "scale"): Kind(parses, "tests/unit/test_scaling.py"),
    ("ttrl", "choose"): Kind(parses, "tests/unit/test_choose.py"),
    ("ttrl", "runs"): Kind(goes_through, "here"),
    ("ttrl", "show"): Kind(goes_through, "here"),
    ("ttrl", "report"): Kind(goes_through, "here"),
    ("ttrl", "compare"): Kind(goes_through, "here"),
    ("ttrl", "plan"): Kind(plans, "here"),
    ("ttrl", "export"): Kind(parses, "tests/e2e/test_export.py, tests/unit/test_hub.py"),
    ("ttrl", "doctor"): Kind(parses, "tests/unit/test_cli.py"),
    ("ttrl", "reproduce"): Kind(begins_a_row, "tests/e2e/test_row.py"),
    ("bash", "scripts/run_ttrl.sh"): Kind(trains, "tests/unit/test_setup.py: its setup"),
    ("bash", "scripts/setup.sh"): Kind(is_an_extra, "tests/unit/test_setup.py"),
    ("bash", "scripts/run_tests.sh"): Kind(has_files, "tests/unit/test_run_tests.py"),
    ("pip", "install"): Kind(is_an_extra, "installs from a registry"),
    ("curl",): Kind(asks, "tests/e2e/test_serve.py"),
    ("tensorboard",): Kind(has_files, "tests/unit/test_tracking.py reads what it shows"),
    ("python", "bench/tiny_seeds.py"): Kind(has_options, "takes an hour"),
    ("python", "bench/algorithms.py"): Kind(has_options, "takes hours"),
    ("python", "bench/one_example.py"): Kind(has_options, "takes half an hour"),
    ("python", "bench/stopping.py"): Kind(has_options, "takes a quarter of an hour"),
    ("python", "bench/real_model.py"): Kind(has_options, "needs a model from a registry"),
    ("python", "scripts/build_tiny_prm.py"): Kind(has_options, "trains for minutes"),
    ("python", "scripts/picture.py"): Kind(has_options, "draws from what the former has left"),
}
"""By the first words of a command."""
FOUND = commands()


def kind_of(command: Command) -> tuple[str, ...]:
    """The first words that `KINDS` has."""
    found = [kind for kind in KINDS if command.words[: len(kind)] == kind]
    assert found, f"{command.place}: a command of a new kind: give it a row in KINDS"
    return max(found, key=len)


@pytest.mark.parametrize("command", FOUND, ids=[command.place for command in FOUND])
def test_a_command_of_the_documents_works(command: Command, ttrl: Call) -> None:
    kind = kind_of(command)
    words = [STAND_FOR.get(word, word) for word in command.words]
    KINDS[kind].check(ttrl, words[1 if kind[0] in ("ttrl", "python") else len(kind) :])


def test_the_table_of_kinds_is_true() -> None:
    assert {kind_of(command) for command in FOUND} == set(KINDS), "remove what no page shows"
    tests = re.findall(r"tests/\S+\.py", " ".join(kind.really for kind in KINDS.values()))
    assert [test for test in tests if not (ROOT / test).is_file()] == []


def test_what_is_no_command_is_told_from_what_is_one() -> None:
    page = (
        '    T="ttrl train x"\n    $T --set a=1 \\\n        --set b=2   # why\n\n'
        '    {"prompt": 1}\n'
        "\n```python\nttrl = 1\n```\n\n```bash\nmake quick\n```\n"
    )
    assert list(commands_of(page, "p")) == [
        Command("p:2", ("ttrl", "train", "x", "--set", "a=1", "--set", "b=2")),
        Command("p:12", ("make", "quick")),
    ]
    with pytest.raises(AssertionError, match="p:12: a command of a new kind"):
        kind_of(Command("p:12", ("make", "quick")))
