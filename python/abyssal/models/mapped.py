"""One safetensors file, mapped into memory and checked before anything is read from it.

The format: eight bytes with the length of a JSON header, the header (name, dtype, shape and byte
range of every tensor), then the bytes. A header that does not describe exactly the bytes that
follow is an error, so that a file cut short by a broken download is found before a model is built
from it. Nothing here knows what a tensor is for.

Source: the format description of the safetensors project.
"""

from __future__ import annotations

import json
import math
import mmap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from abyssal.errors import CheckpointError

#: The header's dtype names.
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_MAX_HEADER = 100_000_000


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies.

    Attributes:
        name: The name in the file.
        dtype: Type of its elements.
        shape: Its shape.
        file: The file that holds it.
        start: Offset of its first byte in the file.
        end: Offset behind its last byte.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    file: Path
    start: int
    end: int

    @property
    def num_bytes(self) -> int:
        """Size in bytes."""
        return self.end - self.start

    @property
    def num_values(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


def read_header(file: Path) -> dict[str, Entry]:
    """Read and check a file's header.

    Args:
        file: A safetensors file.

    Returns:
        The entries by name, in the order of their bytes.

    Raises:
        CheckpointError: no such file, cut short, longer than its header says, or not the format.
    """
    try:
        with file.open("rb") as stream:
            size = file.stat().st_size
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 or length > min(size - 8, _MAX_HEADER):
                raise CheckpointError(
                    f"{file} is truncated or not a safetensors file: {size} bytes, and a header of "
                    f"{length} announced"
                )
            text = stream.read(length)
    except FileNotFoundError:
        raise CheckpointError(f"{file} is missing") from None
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror}") from None
    try:
        header = json.loads(text, object_pairs_hook=lambda pairs: _unique(file, pairs))
    except (ValueError, RecursionError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{file} has a header that is not JSON: {error}") from None
    if not isinstance(header, dict):
        raise CheckpointError(f"{file} has a header that is not an object")
    header.pop("__metadata__", None)
    entries = [_entry(file, name, value, 8 + length) for name, value in header.items()]
    entries.sort(key=lambda entry: (entry.start, entry.end))
    position = 8 + length
    for entry in entries:
        if entry.start != position:
            raise CheckpointError(
                f"{file}: tensor {entry.name} starts at byte {entry.start}, but the one before it "
                f"ends at {position}"
            )
        position = entry.end
    if position != size:
        what = "is truncated" if size < position else "is longer than its header says"
        raise CheckpointError(f"{file} {what}: {size} bytes, the header describes {position}")
    return {entry.name: entry for entry in entries}


def _unique(file: Path, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make a dictionary of JSON pairs; a name that appears twice is an error."""
    values = dict(pairs)
    if len(values) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise CheckpointError(f"{file} names {key!r} twice in its header")
            seen.add(key)
    return values


def _entry(file: Path, name: str, value: Any, data: int) -> Entry:  # noqa: ANN401 - checked here
    """Check one tensor's description; ``data`` is where the bytes begin."""
    try:
        dtype, shape, (start, end) = value["dtype"], value["shape"], value["data_offsets"]
        numbers = [*shape, start, end]
    except (TypeError, KeyError, ValueError):
        raise CheckpointError(
            f"{file}: tensor {name} is not described by dtype, shape and data_offsets"
        ) from None
    if dtype not in DTYPES:
        raise CheckpointError(f"{file}: tensor {name} has the unknown dtype {dtype!r}")
    if any(isinstance(each, bool) or not isinstance(each, int) or each < 0 for each in numbers):
        raise CheckpointError(
            f"{file}: tensor {name} has shape {shape!r} and offsets {[start, end]!r}: no counts"
        )
    need = math.prod(shape) * DTYPES[dtype].itemsize
    if end - start != need:
        raise CheckpointError(
            f"{file}: tensor {name} of {dtype} {shape} needs {need} bytes, its offsets hold "
            f"{end - start}"
        )
    return Entry(name, DTYPES[dtype], tuple(shape), file, data + start, data + end)


class MappedFile:
    """The bytes of a file, mapped; tensors are views of them.

    Guarantees: nothing is read before it is used; writing to a tensor changes this process's copy
    of the page and never the file; the mapping lives as long as a tensor of it.
    """

    def __init__(self, file: Path) -> None:
        with file.open("rb") as stream:
            mapping = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)
        self._bytes = torch.frombuffer(mapping, dtype=torch.uint8)

    def tensor(self, entry: Entry) -> torch.Tensor:
        """Return the tensor of ``entry``: a view, or a copy where its bytes are not aligned."""
        if entry.num_bytes == 0:
            return torch.empty(entry.shape, dtype=entry.dtype)
        data = self._bytes[entry.start : entry.end]
        if entry.start % entry.dtype.itemsize:
            data = data.clone()
        return data.view(entry.dtype).view(entry.shape)
