"""The entry point of ``abyssal``: import the named command, and say what goes wrong in one line.

Start-up is short because only the named command's file is imported; the help page shows the lines
of the table below. Exit codes: 0 done, 1 the input was refused, 2 the command line was wrong, 130
stopped with Ctrl-C.
"""

from __future__ import annotations

import functools
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

# Command -> (module, the line on the help page, which is the first line of the command's own help).
COMMANDS: dict[str, tuple[str, str]] = {
    "demo": ("abyssal.cli.demo", "Show what this is, with the bundled model."),
    "generate": ("abyssal.cli.generate", "Continue a text."),
    "chat": ("abyssal.cli.chat", "Talk with a model that has a chat format."),
    "inspect": ("abyssal.cli.inspect", "Describe a checkpoint without loading it."),
    "evaluate": ("abyssal.cli.evaluate", "Score text files: bits per byte and perplexity."),
    "quantize": (
        "abyssal.cli.quantize",
        "Write a checkpoint again with FP8 or MXFP4 weights.",
    ),
    "tokenize": ("abyssal.cli.tokenize", "Show a text's tokens with their ids and bytes."),
    "train": ("abyssal.cli.train", "Train a small model of the family."),
    "bench": ("abyssal.cli.bench", "Measure speed beside a named peer."),
}

DESCRIPTION = "The DeepSeek model family in PyTorch, on the computer people have."


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit.

    Args:
        arguments: what follows the program's name; default: this process's own.

    Raises:
        SystemExit: always, with the exit code.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words == ["--version"]:
        from abyssal import __version__

        print(f"abyssal {__version__}")
        sys.exit(0)
    try:
        code = _build(words)(words or ["--help"], prog_name="abyssal", standalone_mode=False)
    except Exception as error:
        # A wrong command line; its class has another home in older releases of the library.
        describe = getattr(error, "format_message", None)
        if describe is None:
            if os.environ.get("ABYSSAL_TRACEBACK") == "1":
                raise
            _fail(_one_line(error))
            sys.exit(1)
        named = _named(words)
        command = f"abyssal {named}" if named in COMMANDS else "abyssal"
        _fail(f"{describe().rstrip('.')} ({command} --help tells more)")
        sys.exit(2)
    sys.exit(code if isinstance(code, int) else 0)


def _build(words: Sequence[str]) -> Any:  # noqa: ANN401  the application's class is typer's
    """Return the application with the named command's function and the others' help lines."""
    import typer

    app = typer.Typer(
        help=DESCRIPTION,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )

    # Two options to read here, and a group of commands even while there is one.
    @app.callback()
    def options(
        version: bool = typer.Option(False, "--version", help="Print the version."),
    ) -> None:
        if version:
            from abyssal import __version__

            print(f"abyssal {__version__}")
            raise typer.Exit

    named = _named(words)
    for name, (module, line) in COMMANDS.items():
        if name == named:
            function = getattr(importlib.import_module(module), name)
            app.command(name)(guarded(function))
        else:
            app.command(name, help=line)(_not_imported)
    return app


def _named(words: Sequence[str]) -> str | None:
    """Return the command among the words, if one is there."""
    return next((word for word in words if not word.startswith("-")), None)


def _not_imported() -> None:
    """Stand on the help page for a command that was not asked for."""


def guarded(function: Callable[..., None]) -> Callable[..., None]:
    """Turn what a command raises into one line and an exit code.

    With ``ABYSSAL_TRACEBACK=1`` in the environment, what it raises goes through.
    """

    @functools.wraps(function)
    def run(*args: object, **options: object) -> None:
        if os.environ.get("ABYSSAL_TRACEBACK") == "1":
            return function(*args, **options)
        try:
            return function(*args, **options)
        except KeyboardInterrupt:
            _fail("stopped")
            raise SystemExit(130) from None
        except BrokenPipeError:
            # The reader of our output went away (`| head`): say nothing, now and at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise SystemExit(1) from None
        except Exception as error:
            if hasattr(error, "exit_code"):
                raise  # typer's own: Exit, BadParameter
            _fail(_one_line(error))
            raise SystemExit(1) from None

    return run


def _one_line(error: Exception) -> str:
    """Say what went wrong; what nobody foresaw also gets its name and how to see more."""
    from abyssal import OutOfPages
    from abyssal.errors import AbyssalError

    text = " ".join(str(error).split()) or type(error).__name__
    if (
        isinstance(error, ModuleNotFoundError)
        and error.name
        and not error.name.startswith("abyssal")
    ):
        return f"{text}: pip install {error.name}"
    if isinstance(error, (AbyssalError, OutOfPages, ValueError, OSError)):
        return text
    if isinstance(error, MemoryError):
        return f"out of memory: {text}"
    return f"{type(error).__name__}: {text} (ABYSSAL_TRACEBACK=1 shows where)"


def _fail(line: str) -> None:
    """Print one line to standard error, red at a terminal."""
    if sys.stderr.isatty() and "NO_COLOR" not in os.environ:
        line = f"\x1b[31m{line}\x1b[0m"
    print(line if line.startswith("\x1b") else f"abyssal: {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
