"""Write a checkpoint again with packed weights, one band of rows at a time.

``packing.py`` says which weights are packed, and how.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from abyssal import ops
from abyssal.errors import CheckpointError
from abyssal.models.checkpoint import INDEX, SINGLE, Checkpoint, Progress, open_checkpoint
from abyssal.models.config import ModelConfig
from abyssal.models.hub import human_bytes
from abyssal.models.mapped import DTYPES, Entry
from abyssal.models.packing import (
    BLOCK,
    FP8_CONFIG,
    METHODS,
    Packing,
    Weight,
    num_bytes_of,
    weights_of,
)

#: Bytes of f32 that a band may take: the memory that repacking needs beside the mapped file.
BAND_BYTES = 1 << 26
SHARD_BYTES = 5_000_000_000
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def repack(
    source: str | Path,
    destination: str | Path,
    packing: Packing,
    *,
    shard_bytes: int = SHARD_BYTES,
    progress: Progress | None = None,
) -> int:
    """Write the checkpoint ``source`` to the folder ``destination`` with packed weights.

    Args:
        source: A checkpoint folder with plain weights, or with FP8 weights to become MXFP4.
        destination: A folder that does not exist yet, or is empty.
        packing: How to pack.
        shard_bytes: Bytes after which a new weight file begins.
        progress: Called as ``progress("quantize", done_bytes, total_bytes)`` of the source.

    Returns:
        Bytes of the weight files.

    Raises:
        CheckpointError: as ``ModelConfig.from_folder`` and ``open_checkpoint``; weights that are
            packed already; a head that is tied to the embedding; a weight that is not finite; too
            little room on the disk.
        ValueError: an unknown method; ``experts_only`` with FP8; a destination that holds files.

    Guarantees: reads the source as it goes, and holds one band of rows in f32 (64 MB) and its
    result; the destination appears when all of it is written, and nothing of it is left when
    something fails.
    """
    source, destination = Path(source), Path(destination)
    _check_packing(packing)
    config, checkpoint = ModelConfig.from_folder(source), open_checkpoint(source)
    _check_source(config, checkpoint, packing)
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise ValueError(f"{destination} exists and is not an empty folder")
    weights = list(weights_of(checkpoint, packing))
    total = sum(weight.num_bytes() for weight in weights)
    parent = destination.resolve().parent
    parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(parent).free
    if total > free:
        raise CheckpointError(
            f"{destination} needs {human_bytes(total)}, but its disk has {human_bytes(free)} free"
        )
    partial = parent / f".{destination.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        _copy_other_files(source, partial)
        _write_config(source, partial, packing)
        _write_weights(checkpoint, weights, partial, shard_bytes, progress)
        if destination.exists():
            destination.rmdir()
        os.replace(partial, destination)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return total


def _check_packing(packing: Packing) -> None:
    if packing.method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {packing.method!r}")
    if packing.experts_only and packing.method != "mxfp4":
        raise ValueError("experts_only goes with mxfp4, got fp8")


def _check_source(config: ModelConfig, checkpoint: Checkpoint, packing: Packing) -> None:
    packed = config.quantization
    if packed is not None and (packed.method == "mxfp4" or packing.method == "fp8"):
        raise CheckpointError(f"{checkpoint.folder} is packed as {packed.method} already")
    if packing.head and config.tie_embeddings:
        raise CheckpointError(
            f"{checkpoint.folder} ties its head to the embedding, so the head cannot be packed"
        )


def _copy_other_files(source: Path, folder: Path) -> None:
    """Copy tokenizer, generation settings and texts; weights and the configuration are written."""
    for file in sorted(source.iterdir()):
        kept = file.suffix in (".json", ".txt", ".model", ".jinja", ".md")
        if file.is_file() and kept and file.name not in ("config.json", INDEX):
            shutil.copyfile(file, folder / file.name)


def _write_config(source: Path, folder: Path, packing: Packing) -> None:
    values: dict[str, Any] = json.loads((source / "config.json").read_text(encoding="utf-8"))
    mxfp4 = {"quant_method": "mxfp4"}
    mixed = packing.experts_only
    values["quantization_config"] = FP8_CONFIG if mixed or packing.method == "fp8" else mxfp4
    if mixed:
        values["expert_dtype"] = "fp4"
    text = json.dumps(values, indent=2) + "\n"
    (folder / "config.json").write_text(text, encoding="utf-8")


def _write_weights(
    checkpoint: Checkpoint,
    weights: list[Weight],
    folder: Path,
    shard_bytes: int,
    progress: Progress | None,
) -> None:
    """Write the weight files, and the index where there are several."""
    shards: list[list[Weight]] = [[]]
    size = 0
    for weight in weights:
        if shards[-1] and size + weight.num_bytes() > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(weight)
        size += weight.num_bytes()
    placed: dict[str, str] = {}
    done, total = 0, checkpoint.num_bytes
    for number, shard in enumerate(shards, start=1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors" if len(shards) > 1 else SINGLE
        entries = [each for weight in shard for each in weight.stored()]
        placed.update({entry: name for entry, _, _ in entries})
        with (folder / name).open("wb") as file:
            places = _write_header(file, entries)
            for weight in shard:
                for row in _write_bands(checkpoint, weight, file, places):
                    if progress:
                        progress("quantize", done + row, total)
                done += weight.source.num_bytes * len(weight.rows) // _num_rows(weight.source)
    if len(shards) > 1:
        size = sum(weight.num_bytes() for weight in weights)
        index = {"metadata": {"total_size": size}, "weight_map": placed}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    if progress:
        progress("quantize", total, total)


def _write_header(
    file: Any,  # noqa: ANN401 - a binary file
    entries: list[tuple[str, torch.dtype, tuple[int, ...]]],
) -> dict[str, int]:
    """Write the header of a safetensors file; returns where each tensor begins."""
    # Tensors of wide types first, so that each begins at a multiple of its size.
    ordered = sorted(entries, key=lambda entry: -entry[1].itemsize)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name, dtype, shape in ordered:
        end = start + num_bytes_of(dtype, shape)
        header[name] = {
            "dtype": _NAMES[dtype],
            "shape": list(shape),
            "data_offsets": [start, end],
        }
        start = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write(struct.pack("<Q", len(text)) + text)
    begin = 8 + len(text)
    return {name: begin + header[name]["data_offsets"][0] for name, _, _ in ordered}


def _num_rows(entry: Entry) -> int:
    """Count the rows of a tensor seen as a matrix."""
    return max(1, entry.num_values // entry.shape[-1]) if len(entry.shape) > 1 else 1


def _write_bands(
    checkpoint: Checkpoint,
    weight: Weight,
    file: Any,  # noqa: ANN401 - a binary file
    places: dict[str, int],
) -> Iterator[int]:
    """Write one weight band by band; yields the bytes of the source that were read."""
    tensor = checkpoint.tensor(weight.source.name)
    columns = weight.shape[-1] if len(weight.shape) > 1 else weight.source.num_values
    matrix = tensor.reshape(_num_rows(weight.source), columns)
    step = max(1, BAND_BYTES // (512 * max(1, columns))) * 128
    written = dict.fromkeys((name for name, _, _ in weight.stored()), 0)
    for start in range(weight.rows.start, weight.rows.stop, step):
        stop = min(start + step, weight.rows.stop)
        band = matrix[start:stop]
        parts = (band,) if weight.packing is None else _packed(checkpoint, weight, band, start)
        for name, part in zip(written, parts, strict=True):
            data = part.contiguous().view(torch.uint8).numpy()
            file.seek(places[name] + written[name])
            file.write(data)
            written[name] += data.nbytes
        yield (stop - weight.rows.start) * columns * weight.source.dtype.itemsize


def _packed(
    checkpoint: Checkpoint, weight: Weight, band: torch.Tensor, start: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pack a band of rows that begins at a block."""
    if band.dtype == torch.float8_e4m3fn:
        scales = checkpoint.tensor(f"{weight.source.name}_scale_inv")
        blocks = scales[start // 128 : -(-(start + band.shape[0]) // 128)]
        if weight.packing == "fp8":
            return band, blocks.float()
        band = ops.dequantize_fp8(band.contiguous(), blocks.contiguous(), BLOCK, torch.float32)
    elif not bool(torch.isfinite(band).all()):
        raise CheckpointError(
            f"{checkpoint.folder}: tensor {weight.source.name} holds values that are not finite"
        )
    if weight.packing == "mxfp4":
        return ops.quantize_mxfp4(band.contiguous())
    return ops.quantize_fp8(band.contiguous(), BLOCK)
