"""The file that the kernels' own tests read is what its script writes."""

import importlib.util
from pathlib import Path

import numpy

ROOT = Path(__file__).resolve().parent.parent.parent


def test_the_fixture_of_the_kernels_is_what_the_reference_computes():
    path = ROOT / "scripts" / "two_layers_fixture.py"
    spec = importlib.util.spec_from_file_location("two_layers_fixture", path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    arrays = script.arrays()
    want, got = script.encoded(arrays), (ROOT / "rust/kernels/tests/two_layers.bin").read_bytes()
    exact = 8 * arrays[-1].numel()
    assert got[:-exact] == want[:-exact]
    # float64 sums, which another BLAS may add in another order.
    logits = [numpy.frombuffer(each[-exact:], dtype="<f8") for each in (got, want)]
    numpy.testing.assert_allclose(*logits, rtol=0, atol=1e-12)
