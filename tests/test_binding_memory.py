"""The border between Python and Rust: memory of other owners, its lifetime, and threads.

Runs on every torch from 2.8 on, with the exchange interface and without.
"""

import array
import gc
import threading
import weakref

import numpy as np
import pytest
import torch
from binding_calls import EXPERTS, TOKENS, TOP_K, arguments, route

from abyssal import _core


def read_only(array_):
    array_.setflags(write=False)
    return array_


def test_numpy_arrays_and_other_buffers_are_tensors_too():
    expected = arguments()
    route(**expected)
    got = arguments(
        logits=expected["logits"].numpy(),
        weights=np.zeros((TOKENS, TOP_K), np.float32),
        indices=memoryview(bytearray(4 * TOKENS * TOP_K)).cast("i", (TOKENS, TOP_K)),
    )
    route(**got)
    assert got["weights"].tobytes() == expected["weights"].numpy().tobytes()
    assert got["indices"].tobytes() == expected["indices"].numpy().tobytes()


def test_read_only_memory_is_read_and_never_written():
    logits = read_only(arguments()["logits"].numpy().copy())
    assert route(logits=logits) == 0
    with pytest.raises(ValueError, match="weights: the memory is read-only"):
        route(weights=read_only(np.zeros((TOKENS, TOP_K), np.float32)))


@pytest.mark.parametrize(
    "value",
    [
        np.zeros((TOKENS, EXPERTS), ">f4"),
        np.zeros((TOKENS, EXPERTS), "f8"),
        np.zeros((TOKENS, EXPERTS), "S4"),
        np.zeros((TOKENS, EXPERTS), [("a", "f4")]),
        memoryview(array.array("d", [0.0] * 8)).cast("B").cast("d", (TOKENS, EXPERTS)),
        memoryview(bytes(8)).cast("B", (TOKENS, EXPERTS)),
    ],
    ids=["swapped bytes", "double", "strings", "records", "array", "bytes"],
)
def test_a_buffer_of_another_type_is_a_type_error(value):
    with pytest.raises(TypeError, match="logits"):
        route(logits=value)


def test_an_object_that_only_looks_like_a_tensor_is_never_asked_for_its_memory():
    class Impostor:
        __dlpack_c_exchange_api__ = getattr(torch.Tensor, "__dlpack_c_exchange_api__", 1)
        shape, dtype, device, layout = (TOKENS, EXPERTS), torch.float32, "cpu", "torch.strided"

        def data_ptr(self):
            return 8

        def stride(self):
            return (EXPERTS, 1)

    with pytest.raises(TypeError, match=r"expected a torch\.Tensor or a numpy array, got"):
        route(logits=Impostor())


def test_calls_hold_no_reference_to_their_tensors():
    tensors = arguments()
    route(**tensors)
    with pytest.raises(TypeError):
        route(logits=tensors["logits"], weights=None)
    references = [weakref.ref(value) for value in tensors.values()]
    del tensors
    gc.collect()
    assert [reference() for reference in references] == [None, None, None]


def test_threads_calling_at_once_get_what_one_thread_gets():
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(64, 16, generator=generator) for _ in range(8)]

    def call(logits):
        weights, indices = torch.zeros(64, 4), torch.zeros(64, 4, dtype=torch.int32)
        for _ in range(20):
            _core.route(logits, weights, indices, top_k=4, scoring="sigmoid")
        return weights, indices

    alone = [call(logits) for logits in inputs]
    together = [None] * len(inputs)

    def work(index):
        together[index] = call(inputs[index])

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(inputs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for (weights, indices), (other_weights, other_indices) in zip(alone, together, strict=True):
        assert torch.equal(weights, other_weights)
        assert torch.equal(indices, other_indices)


def test_running_out_of_pages_is_an_error_of_its_own_kind():
    assert issubclass(_core.OutOfPages, RuntimeError)
    cache = _core.PageCache(1, 4)
    handle, _ = cache.open([1, 2, 3])
    with pytest.raises(_core.OutOfPages, match="2 asked, 1 free"):
        cache.step([handle], [8], np.zeros((1, 2), np.int32))
