"""What importing the package does and what it leaves alone, each in a fresh interpreter."""

import json
import subprocess
import sys

import pytest


def run_fresh(code: str, *arguments: str) -> str:
    """Run code in a new interpreter and return what it printed."""
    done = subprocess.run(
        [sys.executable, *arguments, "-c", code], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "statement",
    [
        "import abyssal",
        "import abyssal; dir(abyssal); abyssal.__version__; abyssal.OutOfPages",
        "import abyssal; abyssal.Tokenizer",
        "import abyssal; abyssal.kvcache.PageCache",
        "from abyssal import Tokenizer",
        "from abyssal.kvcache import PageCache",
        "import abyssal.errors",
        "import abyssal; abyssal.chat.ChatFormat",
        "from abyssal.chat import recognize",
    ],
)
def test_importing_without_a_model_never_imports_torch(statement):
    code = f"{statement}\nimport sys; print('torch' in sys.modules)"
    assert run_fresh(code).strip() == "False"


def test_importing_starts_no_thread_changes_no_environment_and_installs_no_signal_handler():
    code = """
import json, os, signal, sys, threading
import torch
def state():
    handlers = [str(signal.getsignal(number)) for number in sorted(signal.valid_signals())]
    threads = len(os.listdir("/proc/self/task")) if os.path.isdir("/proc/self/task") else 0
    return dict(os.environ), handlers, threading.active_count(), threads, torch.get_num_threads()
before = state()
import abyssal, abyssal._core, abyssal.kvcache, abyssal.nn, abyssal.ops, abyssal.reference
abyssal.LLM, abyssal.Tokenizer, abyssal.SamplingParams
print(json.dumps(before == state()))
"""
    assert json.loads(run_fresh(code)) is True


def test_importing_adds_at_most_three_tenths_of_a_second_to_torch():
    code = """
import time
import torch
begin = time.process_time()
import abyssal
abyssal.LLM, abyssal.SamplingParams, abyssal.Tokenizer, abyssal.ops, abyssal.nn, abyssal.kvcache
print(time.process_time() - begin)
"""
    # Processor time, which other programs on the machine do not lengthen; importing waits for
    # nothing but the files, which the first run brings into memory.
    assert min(float(run_fresh(code)) for _ in range(3)) <= 0.3


def test_an_unknown_name_is_an_attribute_error():
    import abyssal

    with pytest.raises(AttributeError, match="no_such_name"):
        _ = abyssal.no_such_name


def test_every_public_name_can_be_imported():
    import abyssal

    for name in abyssal.__all__:
        assert getattr(abyssal, name) is not None
        assert name in dir(abyssal)


def test_a_copy_of_the_version_in_the_metadata_is_the_version_of_the_extension():
    from importlib.metadata import version

    import abyssal

    assert abyssal.__version__ == version("abyssal")


def test_running_the_module_is_the_command():
    done = subprocess.run(
        [sys.executable, "-m", "abyssal", "--version"], capture_output=True, text=True, timeout=120
    )
    import abyssal

    assert done.returncode == 0, done.stderr
    assert abyssal.__version__ in done.stdout
