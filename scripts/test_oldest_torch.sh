#!/usr/bin/env bash
# Run the tests of the binding on the oldest torch that the package supports, in a virtual environment of its own.
# The extension module is the one in python/abyssal: it is built once for every Python and every torch.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=.venv-oldest-torch
if [ ! -x $venv/bin/pytest ]; then
    echo "test-oldest-torch: will download torch 2.8: about 3 GB with CUDA (TORCH_PIP_ARGS chooses another build)"
    "${PYTHON:-python3}" -m venv $venv
    # shellcheck disable=SC2086 # the variable holds several arguments
    $venv/bin/python -m pip install --quiet "torch==2.8.*" ${TORCH_PIP_ARGS:-}
    $venv/bin/python -m pip install --quiet numpy safetensors typer rich jinja2 huggingface_hub \
        hypothesis pytest pytest-benchmark pytest-timeout
fi
# The comparison with transformers needs transformers, which is no part of the binding.
PYTHONPATH=python $venv/bin/python -m pytest --quiet -p no:cacheprovider tests/test_binding*.py tests/ops \
    --ignore tests/ops/test_routing_transformers.py
