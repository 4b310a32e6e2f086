#!/usr/bin/env bash
# Run the tests of threads that need no torch on a free-threaded Python, in a virtual environment of its own.
#
# Usage: scripts/test_free_threaded.sh PYTHON [TEST ...]; PYTHON is a free-threaded interpreter (3.14t or newer)
# A free-threaded interpreter cannot load the stable-ABI wheel: this builds one for it alone.
set -euo pipefail
cd "$(dirname "$0")/.."
python=$1
venv=.venv-free-threaded
"$python" -c 'import sysconfig; raise SystemExit(not sysconfig.get_config_var("Py_GIL_DISABLED"))' ||
    { echo "test-free-threaded: '$python' has a global interpreter lock" >&2; exit 1; }
if [ ! -x $venv/bin/pytest ]; then
    "$python" -m venv $venv
    $venv/bin/python -m pip install --quiet --disable-pip-version-check "maturin>=1.9.4,<2" numpy \
        hypothesis pytest pytest-benchmark pytest-timeout
fi
rm -rf build/free-threaded
$venv/bin/maturin build --quiet --release --locked --interpreter $venv/bin/python --out build/free-threaded
$venv/bin/python -m pip install --quiet --disable-pip-version-check --force-reinstall --no-deps build/free-threaded/*.whl
# Importing the module must not bring the lock back.
PYTHON_GIL="" $venv/bin/python -W error -c \
    'import sys, abyssal._core; assert not sys._is_gil_enabled(), "the module turned the interpreter lock on"'
[ $# -gt 1 ] || set -- "$python" tests/kvcache/test_threads.py
$venv/bin/python -m pytest --quiet -p no:cacheprovider -o "pythonpath=" "${@:2}"
