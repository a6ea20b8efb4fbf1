"""The entry point: choose the command, run it, turn every error into one line and an exit status."""

from __future__ import annotations

import contextlib
import io
import re
import sys
import traceback
from collections.abc import Sequence
from dataclasses import fields
from typing import Annotated, Any, Union

import tyro
from tyro.conf import OmitArgPrefixes, OmitSubcommandPrefixes, subcommand

from diffusion_renderer import __version__
from diffusion_renderer.cli.dataset import ACTIONS as DATASET_ACTIONS
from diffusion_renderer.cli.dataset import Dataset
from diffusion_renderer.cli.demo import Demo
from diffusion_renderer.cli.evaluate import Evaluate
from diffusion_renderer.cli.options import Forward, Inverse, Relight
from diffusion_renderer.cli.train import Train
from diffusion_renderer.cli.values import BadOption
from diffusion_renderer.cli.weights import Weights
from diffusion_renderer.core.errors import InputError, one_line
from diffusion_renderer.core.names import check_name, nearest

PROG = "diffusion-renderer"
#: Exit statuses: a mistake in what the user gave, a failure of the machine or of ours, an interruption (as shells count it).
BAD_INPUT, FAILED, INTERRUPTED = 2, 1, 130

COMMANDS: dict[str, type] = {
    "inverse": Inverse,
    "forward": Forward,
    "relight": Relight,
    "demo": Demo,
    "evaluate": Evaluate,
    "train": Train,
    "dataset": Dataset,
    "weights": Weights,
}
#: Commands that take the name of an action instead of their first argument: `dataset inspect DIR` beside `dataset OUT`.
ACTIONS: dict[str, dict[str, type]] = {"dataset": DATASET_ACTIONS}
Command: Any = Union[tuple(Annotated[kind, subcommand(name)] for name, kind in COMMANDS.items())]  # noqa: UP007
DESCRIPTION = f"""Open DiffusionRenderer {__version__}: videos to G-buffers, G-buffers and light back to videos.

`{PROG} COMMAND --help` explains a command. A mistake ends with exit status 2 and one line that says what to do."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` (default: the process's) and return the exit status.

    0 done; 2 a mistake in what was given; 1 a failure of the machine (memory), a defect, or faults that a command that checks
    has found; 130 interrupted. Errors are one line on stderr without a traceback, unless ``--debug`` is among the arguments.
    ``--help`` raises SystemExit(0).
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        if arguments in (["--version"], ["-V"]):
            print(f"{PROG} {__version__}")
            return 0
        return parse(arguments).run() or 0
    except (Exception, KeyboardInterrupt) as error:
        if "--debug" in arguments:
            traceback.print_exc()
        status, line = explain(error)
        print(f"\n{line}" if status == INTERRUPTED else line, file=sys.stderr)
        return status


def parse(arguments: Sequence[str]) -> Any:
    """The command of a command line: a frozen dataclass with a method ``run``.

    Raises InputError for options that do not parse; SystemExit(0) after printing the help.
    """
    name = arguments[0] if arguments else ""
    if name and not name.startswith("-"):
        check_name("a command", name, COMMANDS)
    action = ACTIONS.get(name, {}).get(arguments[1]) if len(arguments) > 1 else None
    if action is not None:
        return _parse(action, f"{PROG} {name} {arguments[1]}", None, arguments[2:], action)
    command = f"{PROG} {name}" if name in COMMANDS else PROG
    return _parse(Command, PROG, DESCRIPTION, arguments, COMMANDS.get(name), command)


def _parse(
    kind: Any, prog: str, description: str | None, arguments: Sequence[str], command: type | None, said: str | None = None
) -> Any:
    """tyro over ``arguments``; ``command`` and ``said`` are what its errors are about, class and words."""
    said = said or prog
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            return tyro.cli(
                kind,
                prog=prog,
                description=description,
                args=list(arguments),
                config=(OmitArgPrefixes, OmitSubcommandPrefixes),
            )
    except BadOption as bad:
        raise bad.error from None
    except SystemExit as end:
        if end.code in (0, None):
            sys.stderr.write(printed.getvalue())
            raise
        found = unbox(printed.getvalue())
        if found.startswith("expected one of {"):
            raise InputError(f"{said} to be followed by {found[9:]}", "nothing", "add one, or --help") from None
        raise InputError(f"arguments as in `{said} --help`", found, advice(found, command)) from None


def unbox(text: str) -> str:
    """tyro's boxed, wrapped message as one line, without its title and its hints about the help.

    Where the terminal has no box characters the title is a line of its own, ended by a rule.
    """
    message: list[str] = []
    titled = "╭" in text
    for line in re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines():
        content = line.strip(" │")
        if re.fullmatch("[─-]{3,}", content):
            if titled:
                break
            titled, message = True, []
        elif not content.startswith(("╭", "╰")):
            message.append(content)
    joined = one_line(" ".join(message)).rstrip(".")
    missing = re.match(r"Missing from .*?: (.*)", joined)
    if missing:
        # Each missing argument comes with its whole help text: keep how it is written.
        names = re.findall(r"(?:^|\(required\) )((?:-\S+ \S+, )*(?:--\S+ )?\S+)", missing[1])
        return "no " + " and no ".join(name for name in names)
    return joined[:1].lower() + joined[1:] or "something else"


def advice(found: str, command: type | None) -> str:
    """What to do about a line that did not parse."""
    unknown = re.match(r"unrecognized options: (--\S+?)(?:,|$)", found)
    if unknown and command is not None:
        flags = [f"--{field.name.replace('_', '-')}" for field in fields(command)]
        guess = nearest(unknown[1].split("=")[0], flags)
        return f"did you mean {guess}?" if guess else "leave it out"
    if found.startswith("no "):
        return "add what is missing; arguments without dashes go before the options"
    return "correct them"


def explain(error: BaseException) -> tuple[int, str]:
    """(exit status, one line) for whatever ended a command."""
    if isinstance(error, InputError):
        return BAD_INPUT, f"error: {error}"
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED, "interrupted: run the same command again to continue where it stopped"
    if isinstance(error, MemoryError) or _is_memory(error):
        return FAILED, (
            "error: expected enough memory for the clip; found that it ran out; give fewer frames (--frames N) or a smaller"
            f" working size (--size WxH) ({one_line(error)[:120]})"
        )
    if isinstance(error, OSError):
        path = f" {error.filename}" if error.filename else ""
        reason = error.strerror or one_line(error)
        return BAD_INPUT, f"error: expected to read and write files; found {reason}:{path or ' no file named'}; check the path"
    if isinstance(error, ModuleNotFoundError) and not (error.name or "").startswith("diffusion_renderer"):
        return BAD_INPUT, (
            f"error: expected the package {error.name}; found it not installed; pip install 'diffusion-renderer[data]'"
            " (in a clone: make setup)"
        )
    return FAILED, f"error: expected no defect; found {type(error).__name__}: {one_line(error)}; run with --debug and report it"


def _is_memory(error: BaseException) -> bool:
    """torch's out-of-memory errors, recognised without loading torch: on a CPU they are plain RuntimeErrors."""
    text = str(error)
    return isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)
