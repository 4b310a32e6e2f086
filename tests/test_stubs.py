"""The type stub of the extension says what the extension has."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_the_stub_describes_the_extension_module():
    done = subprocess.run(
        [sys.executable, "-m", "mypy.stubtest", "abyssal._core"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=550,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_package_is_marked_as_typed():
    assert (ROOT / "python" / "abyssal" / "py.typed").is_file()
