# What the compiled module has; `make lint` compares this file with it (mypy.stubtest).
# Tensors may be torch tensors, numpy arrays or other buffers; that cannot be written as one type
# without importing torch, so they are `object` here and checked at run time.
import os
from collections.abc import Sequence
from typing import Any, Final, final

__all__ = [
    "BlockTables",
    "DecodeStream",
    "DecoderLayer",
    "EncodeStream",
    "Experts",
    "IdBuffer",
    "OutOfPages",
    "PageCache",
    "SavedPrefix",
    "Tokenizer",
    "__version__",
    "cpu_tier",
    "dequantize_fp8",
    "dequantize_mxfp4",
    "fp8_linear",
    "gate_direct",
    "gate_route",
    "get_num_threads",
    "greedy",
    "kernel_tier",
    "kernel_tiers",
    "linear",
    "mla_attention",
    "mxfp4_linear",
    "page_identities",
    "permute",
    "prefer_large_pages",
    "quantize_fp8",
    "quantize_mxfp4",
    "rms_norm",
    "route",
    "route_direct",
    "route_table",
    "save_prefix",
    "set_kernel_tier",
    "set_num_threads",
    "unchanged",
    "write_latents",
]

__version__: str

class OutOfPages(RuntimeError): ...

def cpu_tier() -> str: ...
def route(
    logits: object,
    weights: object,
    indices: object,
    *,
    top_k: int,
    scoring: str,
    correction_bias: object = None,
    num_groups: int = 1,
    top_groups: int = 1,
    group_score: str = "top2_sum",
    normalize: bool = True,
    scale: float = 1.0,
    load: object = None,
) -> int: ...
def gate_direct(
    x: object,
    weight: object,
    top_k: object,
    scoring: object,
    correction_bias: object,
    num_groups: object,
    top_groups: object,
    group_score: object,
    normalize: object,
    scale: object,
    out: object,
    load: object,
    logits: object,
    num_threads: int,
) -> tuple[Any, Any] | None: ...
def gate_route(
    x: object,
    weight: object,
    weights: object,
    indices: object,
    *,
    top_k: int,
    scoring: str,
    correction_bias: object = None,
    num_groups: int = 1,
    top_groups: int = 1,
    group_score: str = "top2_sum",
    normalize: bool = True,
    scale: float = 1.0,
    load: object = None,
    logits: object = None,
    num_threads: int = 1,
) -> int: ...
def route_direct(
    logits: object,
    top_k: object,
    scoring: object,
    correction_bias: object,
    num_groups: object,
    top_groups: object,
    group_score: object,
    normalize: object,
    scale: object,
    out: object,
    load: object,
) -> tuple[Any, Any] | None: ...
def route_table(
    logits: object,
    token_ids: object,
    table: object,
    weights: object,
    indices: object,
    *,
    scoring: str,
    normalize: bool = True,
    scale: float = 1.0,
    load: object = None,
) -> int: ...
def permute(indices: object, num_experts: int, order: object, offsets: object) -> None: ...
def prefer_large_pages(tensor: object) -> None: ...
def quantize_fp8(
    x: object, codes: object, scales: object, block: tuple[int, int], scale_format: str
) -> None: ...
def dequantize_fp8(codes: object, scales: object, out: object, block: tuple[int, int]) -> None: ...
def quantize_mxfp4(x: object, codes: object, scales: object) -> None: ...
def dequantize_mxfp4(codes: object, scales: object, out: object) -> None: ...
def get_num_threads() -> int: ...
def set_num_threads(num_threads: int) -> None: ...
def kernel_tier() -> str: ...
def kernel_tiers() -> list[str]: ...
def set_kernel_tier(name: str) -> None: ...
def linear(x: object, weight: object, out: object, num_threads: int | None = None) -> None: ...
def fp8_linear(
    x: object, codes: object, scales: object, out: object, num_threads: int | None = None
) -> None: ...
def mxfp4_linear(
    x: object, codes: object, scales: object, out: object, num_threads: int | None = None
) -> None: ...
def mla_attention(
    query: object,
    cos: object,
    sin: object,
    cache: object,
    spans: object,
    block_tables: object,
    up: object,
    up_scales: object,
    out: object,
    *,
    page_size: int,
    scale: float,
    num_threads: int = 1,
) -> None: ...
def write_latents(
    values: object,
    norm: object,
    cos: object,
    sin: object,
    cache: object,
    slots: object,
    *,
    eps: float,
    num_threads: int = 1,
) -> None: ...
def rms_norm(x: object, weight: object, eps: float, out: object) -> None: ...
def greedy(logits: object) -> list[int]: ...
def unchanged(homes: list[Any], names: list[str], values: list[Any]) -> bool: ...

@final
class Experts:
    def __new__(
        cls,
        experts: Sequence[Sequence[tuple[object, object]]],
        shared: Sequence[tuple[object, object]] | None = None,
        num_routes: int | None = None,
        limit: float | None = None,
    ) -> Experts: ...
    def forward(
        self,
        x: object,
        weights: object,
        indices: object,
        out: object,
        num_threads: int | None = None,
    ) -> None: ...

@final
class DecoderLayer:
    def __new__(
        cls,
        *,
        input_norm: tuple[object, float],
        query_down: tuple[tuple[object, object], tuple[object, float]] | None,
        query: tuple[object, object],
        kv_down: tuple[object, object],
        kv_norm: tuple[object, float],
        kv_up: tuple[object, object],
        output: tuple[object, object],
        sizes: Sequence[int],
        scale: float,
        post_norm: tuple[object, float],
        router: object,
        experts: Experts,
    ) -> DecoderLayer: ...
    def forward(
        self,
        hidden: object,
        cos: object,
        sin: object,
        cache: object,
        slots: object,
        spans: object,
        block_tables: object,
        out: object,
        *,
        page_size: int,
        dtype: str,
    ) -> None: ...

@final
class IdBuffer: ...

@final
class Tokenizer:
    SUPPORTED: Final[str]
    CACHE_BYTES: Final[int]
    @staticmethod
    def from_json(data: bytes) -> Tokenizer: ...
    @staticmethod
    def from_tiktoken(data: bytes, controls: list[tuple[int, str, bool]]) -> Tokenizer: ...
    @property
    def cache_bytes(self) -> int: ...
    def encode(self, text: str, parse_special: bool = True) -> list[int]: ...
    def encode_to_buffer(self, text: str, parse_special: bool = True) -> IdBuffer: ...
    def encode_batch(
        self, texts: list[str], parse_special: bool = True, threads: int = 0
    ) -> list[list[int]]: ...
    def encode_batch_to_buffer(
        self, texts: list[str], parse_special: bool = True, threads: int = 0
    ) -> tuple[IdBuffer, list[int]]: ...
    def encode_file_to_buffer(
        self, path: str | os.PathLike[str], parse_special: bool = True, threads: int = 0
    ) -> IdBuffer: ...
    def encode_bytes(self, data: bytes) -> list[int]: ...
    def count(self, text: str, parse_special: bool = True) -> int: ...
    def decode(self, ids: list[int], skip_special: bool = False) -> str: ...
    def decode_bytes(self, ids: list[int], skip_special: bool = False) -> bytes: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def max_id(self) -> int: ...
    def token_to_id(self, token: str) -> int | None: ...
    def id_to_token(self, id: int) -> str | None: ...
    def added_tokens(self) -> list[tuple[int, str, bool]]: ...
    def stream(self, skip_special: bool = False) -> DecodeStream: ...
    def encode_stream(self, parse_special: bool = True) -> EncodeStream: ...
    def encode_with_offsets(
        self, text: str, parse_special: bool = True
    ) -> tuple[list[int], list[tuple[int, int]]]: ...

@final
class EncodeStream:
    def push(self, text: str) -> list[int]: ...
    def finish(self) -> list[int]: ...

@final
class DecodeStream:
    def push(self, id: int) -> str: ...
    def finish(self) -> str: ...

@final
class BlockTables:
    def __new__(cls, array: object) -> BlockTables: ...
    @property
    def array(self) -> Any: ...  # noqa: ANN401 - as it was given
    def forget(self) -> None: ...

@final
class PageCache:
    def __new__(
        cls, num_pages: int, page_size: int = 64, *, reuse: bool = True, events: bool = False
    ) -> PageCache: ...
    def open(
        self,
        token_ids: object,
        salt: bytes = b"",
        *,
        max_cached: int | None = None,
        multiple_of: int = 1,
    ) -> tuple[int, int]: ...
    def step(
        self, handles: object, counts: object, block_tables_out: object, written: object = None
    ) -> list[tuple[int, int]]: ...
    def commit(
        self,
        handles: object,
        computed: object,
        publish: bool | Sequence[bool],
        token_ids: object = None,
    ) -> None: ...
    def fork(self, handle: int) -> int: ...
    def close(self, handle: int) -> None: ...
    def clear(self) -> None: ...
    def take_events(
        self,
        *,
        timestamp: float | None = None,
        data_parallel_rank: int | None = None,
        medium: str = "GPU",
        full_hashes: bool = False,
    ) -> bytes | None: ...
    def stats(self) -> dict[str, int]: ...
    def audit(self) -> None: ...
    @property
    def num_pages(self) -> int: ...
    @property
    def page_size(self) -> int: ...
    @property
    def free_pages(self) -> int: ...

def save_prefix(
    path: str | os.PathLike[str],
    token_ids: object,
    pages: object,
    *,
    fingerprint: str,
    dtype: str,
    page_size: int = 64,
) -> None: ...
def page_identities(token_ids: object, page_size: int = 64, salt: bytes = b"") -> list[bytes]: ...

@final
class SavedPrefix:
    @staticmethod
    def open(
        path: str | os.PathLike[str], *, fingerprint: str, dtype: str, mapped: bool = True
    ) -> SavedPrefix: ...
    @property
    def token_ids(self) -> memoryview[int]: ...
    @property
    def pages(self) -> memoryview[int]: ...
    @property
    def num_pages(self) -> int: ...
    @property
    def page_size(self) -> int: ...
    @property
    def fingerprint(self) -> str: ...
    @property
    def dtype(self) -> str: ...
