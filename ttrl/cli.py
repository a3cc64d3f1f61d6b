"""The command line: ``ttrl COMMAND``, each made in `ttrl.commands`."""

from __future__ import annotations

import os
import sys
import time
import traceback
from contextlib import suppress
from typing import Annotated, NoReturn

import typer

from ttrl import __version__
from ttrl.commands.choose import choose
from ttrl.commands.doctor import doctor
from ttrl.commands.evaluate import evaluate
from ttrl.commands.export import export_model
from ttrl.commands.plan import plan_command
from ttrl.commands.report import report
from ttrl.commands.reproduce import reproduce
from ttrl.commands.runs import compare, runs, show
from ttrl.commands.scale import scale
from ttrl.commands.serve import serve
from ttrl.commands.settings import settings
from ttrl.commands.train import train
from ttrl.system.launch import is_main, keep_segments_whole, launched
from ttrl.types import UserError

# Heavy imports are inside the commands: help, dry runs and wrong settings answer at once.

app = typer.Typer(
    help="Test-time reinforcement learning: turn unlabeled questions into a better model.",
    epilog="Begin with: ttrl train tiny-arithmetic (minutes, on any machine).",
    context_settings={"help_option_names": ["-h", "--help"]},
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        print(__version__)
        raise typer.Exit


app.command("train")(train)
app.command("serve")(serve)
app.command("eval")(evaluate)
app.command("choose")(choose)
app.command("scale")(scale)
app.command("runs")(runs)
app.command("show")(show)
app.command("compare")(compare)
app.command("report")(report)
app.command("reproduce")(reproduce)
app.command("export")(export_model)
app.command("plan")(plan_command)
app.command("settings")(settings)
app.command("doctor")(doctor)


def _refuse_surrogates(argument: str) -> None:
    """Raise a UserError for an argument that is not UTF-8.

    Names and prompts are written as UTF-8, some of them at the end of a run only.
    """
    try:
        argument.encode()
    except UnicodeEncodeError:
        raise UserError(f"the argument {argument!r} is not UTF-8") from None


def main() -> None:
    """Run the command line: what the user can put right is one line and exit code 2."""
    keep_segments_whole()
    try:
        for argument in sys.argv:
            _refuse_surrogates(argument)
        app()
    except (UserError, OSError) as error:  # OSError: a full disk, no permission
        who = ""
        if not is_main():
            who = f"rank {os.environ['RANK']}: "
            with suppress(KeyboardInterrupt):
                time.sleep(10)  # mostly rank 0 says the same, and its end ends this one
        print(f"ttrl: {who}error: {error}", file=sys.stderr)
        _leave(2)
    except Exception:
        if not launched():
            raise
        traceback.print_exc()
        _leave(1)


def _leave(code: int) -> NoReturn:
    """End this process; a rank of several at once, as vLLM's usual exit waits for the others."""
    if launched():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    main()
