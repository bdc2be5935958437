"""The command line as a whole, and how any command ends.

Heavy imports happen inside the commands, so that ``--help`` is instant.
"""

import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from demr.cli.data import app as data_app
from demr.cli.models import app as models_app
from demr.cli.search import app as search_app
from demr.errors import DemrError
from demr.machine.processes import end_with_parent
from demr.machine.terminal import (
    complain,
    console,
    end_output,
    open_closed_streams,
    say,
    write_text,
)

app = typer.Typer(
    help="Find the moment in a video that a sentence describes, and know how far to trust it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(search_app)
app.add_typer(models_app)
app.add_typer(data_app)

BAD_INPUT = 2
INTERRUPTED = 130


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the video and the report.")] = Path(
        "runs/demo"
    ),
    seed: Annotated[int, typer.Option(help="Another seed renders another video.")] = 0,
) -> None:
    """Render a video, search it, and write a report: the whole system in a minute."""
    from demr.cli.demo import run_demo

    run_demo(out, seed)


@app.command()
def doctor(
    pack: Annotated[
        Path | None, typer.Argument(help="A feature pack: read it whole, compare its checksums.")
    ] = None,
) -> None:
    """Show what is installed, cached and usable, and what to run to get the rest.

    With a feature pack: whether its shards still are what was packed.
    """
    from demr.cli.doctor import examine, examine_pack, findings_table, is_healthy

    findings = examine() if pack is None else examine_pack(pack)
    console().print(findings_table(findings))
    if not is_healthy(findings):
        raise typer.Exit(1)


def main() -> None:
    """Run the command line; what a user can mend becomes one line and exit code 2."""
    end_with_parent()
    warnings.showwarning = _show_warning
    open_closed_streams()
    code = _ending(_run)
    # A full disk is often told of only here.
    sys.exit(_ending(end_output) or code)


def _run() -> int:
    output = sys.stdout
    try:
        # Typer returns the code where others raise: of an early exit, and of Ctrl-C.
        code = app(prog_name="demr", standalone_mode=False)
    except SystemExit:
        # Click ends so, and wraps the stream, where the reader of its help has gone.
        if sys.stdout is output:
            raise
        return 0
    return code if isinstance(code, int) else 0


def _ending(step: Callable[[], int | None]) -> int:
    """Exit code of a step, after a line on what stopped it."""
    try:
        code = step() or 0
        if code == INTERRUPTED:
            complain("interrupted")
        return code
    except typer.Exit as stop:
        return stop.exit_code
    except DemrError as error:
        complain(str(error))
    except (KeyboardInterrupt, typer.Abort):
        complain("interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        # Not of this program's own writing, which goes on; the reader has seen enough.
        return 0
    except OSError as error:
        # The second name is where a temporary file was to go; without any it is an output.
        complain(f"{error.filename2 or error.filename or 'output'}: {error.strerror or error}")
    except Exception as error:  # noqa: BLE001  (told whole, but without what a terminal obeys)
        # Click's usage errors (a missing argument, an unknown option) share no public base here.
        message = getattr(error, "format_message", None)
        if message is None:
            for line in traceback.format_exc().splitlines():
                say(line, stderr=True)
            return 1
        text = message()
        if text.startswith("Usage:"):
            # A bare `demr` asks what there is.
            write_text(f"{text}\n", stderr=True)
        else:
            complain(f"{' '.join(text.split()).rstrip('.')}; see demr --help")
    return BAD_INPUT


def _show_warning(message: Warning | str, *args: Any, **kwargs: Any) -> None:
    del args, kwargs
    complain(f"warning: {message}")
