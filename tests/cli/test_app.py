import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from abyssal import __version__
from abyssal.cli import app
from abyssal.errors import CheckpointError


def run(*arguments, **environment):
    """Run the command line in its own process, as a user does."""
    return subprocess.run(
        [sys.executable, "-m", "abyssal", *arguments],
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )


def exit_code(arguments):
    with pytest.raises(SystemExit) as caught:
        app.main(arguments)
    return caught.value.code


def test_version_is_the_packages(capsys):
    assert exit_code(["--version"]) == 0
    assert capsys.readouterr().out == f"abyssal {__version__}\n"


def test_version_and_help_import_neither_torch_nor_a_command():
    check = (
        "import sys\nfrom abyssal.cli import app\n"
        "try:\n    app.main([{!r}])\nexcept SystemExit as end:\n    assert not end.code\n"
        "heavy = ('torch', 'numpy', 'abyssal.cli.generate', 'abyssal.cli.train')\n"
        "loaded = [name for name in heavy "
        "if name in sys.modules]\nassert not loaded, loaded\n"
    )
    for option in ("--version", "--help"):
        done = subprocess.run(
            [sys.executable, "-c", check.format(option)], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr


def processor_seconds(option):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert run(option).returncode == 0
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


@pytest.mark.parametrize("option", ["--version", "--help"])
def test_version_and_help_come_quickly(option):
    # Processor time, best of five, so that a busy machine does not decide. On an idle one it is
    # 0.07 s and 0.2 s; importing torch alone would take more than the bound.
    assert min(processor_seconds(option) for _ in range(5)) < 0.6


def test_no_arguments_show_the_help_page_with_every_command(capsys):
    assert exit_code([]) == 0
    page = capsys.readouterr().out
    for name, (_, line) in app.COMMANDS.items():
        assert name in page
        assert line in page


@pytest.mark.parametrize("name", list(app.COMMANDS))
def test_each_commands_own_help_begins_with_its_line_on_the_help_page(name, capsys):
    assert exit_code([name, "--help"]) == 0
    assert app.COMMANDS[name][1] in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no-such-command"], "No such command 'no-such-command' (abyssal --help tells more)"),
        (["--no-such-option"], "No such option: --no-such-option (abyssal --help tells more)"),
        (["generate", "--bad"], "No such option: --bad (abyssal generate --help tells more)"),
        (["generate", "x", "--max-tokens", "many"], "Invalid value for '--max-tokens'"),
        (["generate", "x", "--token-ids", "1"], "a prompt and --token-ids exclude each other"),
        (["generate", "--token-ids", "1,b"], "--token-ids takes numbers, found '1,b'"),
        (["evaluate"], "Missing argument"),
    ],
)
def test_a_wrong_command_line_gives_one_line_and_exit_code_2(arguments, message, capsys):
    assert exit_code(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [["generate", "x", "--model"], ["chat", "--model"], ["inspect"], ["demo", "--model"]],
)
def test_a_folder_that_is_not_there_gives_one_line_and_exit_code_1(arguments, capsys):
    assert exit_code([*arguments, "/no/such/folder"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("abyssal: no folder /no/such/folder")
    assert captured.err.count("\n") == 1


def test_errors_are_plain_text_where_standard_error_is_no_terminal():
    assert "\x1b" not in run("inspect", "/no/such/folder").stderr


def guarded_exit(error, capsys):
    def command():
        raise error

    with pytest.raises(SystemExit) as caught:
        app.guarded(command)()
    return caught.value.code, capsys.readouterr().err


def test_ctrl_c_exits_with_130_and_no_traceback(capsys):
    assert guarded_exit(KeyboardInterrupt(), capsys) == (130, "abyssal: stopped\n")


def test_an_error_of_several_lines_becomes_one(capsys):
    assert guarded_exit(CheckpointError("one\n  two\nthree"), capsys) == (
        1,
        "abyssal: one two three\n",
    )


def test_an_unforeseen_error_says_its_name_and_how_to_see_more(capsys):
    code, line = guarded_exit(KeyError("hidden"), capsys)
    assert code == 1
    assert line == "abyssal: KeyError: 'hidden' (ABYSSAL_TRACEBACK=1 shows where)\n"


def test_the_traceback_variable_lets_the_error_through(monkeypatch):
    monkeypatch.setenv("ABYSSAL_TRACEBACK", "1")

    def command():
        raise KeyError("hidden")

    with pytest.raises(KeyError):
        app.guarded(command)()


def test_a_missing_package_is_named_with_how_to_install_it(capsys):
    code, line = guarded_exit(
        ModuleNotFoundError("No module named 'jinja2'", name="jinja2"), capsys
    )
    assert (code, line) == (1, "abyssal: No module named 'jinja2': pip install jinja2\n")


def test_a_reader_that_goes_away_ends_the_command_without_a_word():
    program = (
        "from abyssal.cli import app\n"
        "def many():\n"
        "    while True: print('x' * 100)\n"
        "app.guarded(many)()\n"
    )
    command = f'"{sys.executable}" -c "{program}" | head -1'
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert done.stdout == "x" * 100 + "\n"
    assert done.stderr == ""


def start(*arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "abyssal", *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def test_ctrl_c_on_a_waiting_command_ends_it_with_130():
    waiting = start("generate", "-")
    # The command is imported and reads its input when the system says that it waits in a pipe.
    place = Path(f"/proc/{waiting.pid}/wchan")
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and "pipe" not in place.read_text():
        time.sleep(0.05)
    waiting.send_signal(signal.SIGINT)
    _, errors = waiting.communicate(timeout=60)
    assert waiting.returncode == 130
    assert errors == b"abyssal: stopped\n"


def test_ctrl_c_ends_an_answer_with_130_and_leaves_what_was_printed(base_model):
    running = start("generate", "In", "-m", base_model, "-n", 2000, "--ignore-eos", "-t", 1)
    beginning = running.stdout.read(10)
    running.send_signal(signal.SIGINT)
    rest, errors = running.communicate(timeout=60)
    assert running.returncode == 130
    assert len(beginning + rest) >= 10
    assert errors.decode().splitlines()[-1] == "abyssal: stopped"
    assert b"Traceback" not in errors
