"""A checkpoint folder: which files hold which tensors.

Every header is read and checked when the folder is opened, so that a missing or damaged file is
found before any weight is used; the weights themselves are mapped when they are first asked for.
Only safetensors files are read: the older ``.bin`` and ``.pt`` files are pickles, which can run
code.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch

from abyssal.errors import CheckpointError
from abyssal.models.mapped import Entry, MappedFile, read_header

#: Called as ``progress(stage, done_bytes, total_bytes)``.
Progress = Callable[[str, int, int], None]

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


class Checkpoint:
    """The tensors of a folder.

    Args:
        folder: The folder.
        entries: Every tensor by its name.
    """

    def __init__(self, folder: Path, entries: dict[str, Entry]) -> None:
        self.folder = folder
        self.entries = entries
        self._files: dict[Path, MappedFile] = {}

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(entry.num_bytes for entry in self.entries.values())

    def tensor(self, name: str) -> torch.Tensor:
        """Return the tensor ``name``, a view of the mapped file.

        Raises:
            CheckpointError: no such tensor, or its file has gone since the folder was opened.
        """
        if name not in self.entries:
            raise CheckpointError(f"{self.folder} holds no tensor {name}")
        entry = self.entries[name]
        if entry.file not in self._files:
            try:
                self._files[entry.file] = MappedFile(entry.file)
            except (OSError, ValueError) as error:
                raise CheckpointError(f"{entry.file} cannot be mapped: {error}") from None
        return self._files[entry.file].tensor(entry)


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Open a folder of safetensors files.

    Args:
        path: A folder with ``model.safetensors``, or with an index and the shards that it names.

    Raises:
        CheckpointError: no folder, no safetensors files, a shard that is missing, truncated or
            damaged, an index that does not fit its shards, or a tensor that two shards hold.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder")
    entries: dict[str, Entry] = {}
    files, placed = _files(folder)
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise CheckpointError(
            f"{folder} lacks {len(missing)} of the {len(files)} shards that {INDEX} names: "
            f"{some(missing)}"
        )
    for file in files:
        for name, entry in read_header(file).items():
            if name in entries:
                raise CheckpointError(
                    f"{folder}: tensor {name} is in both {entries[name].file.name} and {file.name}"
                )
            entries[name] = entry
    for name, shard in placed.items():
        if name not in entries or entries[name].file.name != shard:
            found = f"it is in {entries[name].file.name}" if name in entries else "no shard has it"
            raise CheckpointError(f"{folder}: {INDEX} puts tensor {name} in {shard}, but {found}")
    return Checkpoint(folder, entries)


def _files(folder: Path) -> tuple[list[Path], dict[str, str]]:
    """Return the files that hold tensors, and which file the index puts each tensor in."""
    index = folder / INDEX
    if index.is_file():
        try:
            placed = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            shards = sorted(set(placed.values()))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{index} is damaged: {error!r}") from None
        for shard in shards:
            if not isinstance(shard, str) or Path(shard).name != shard:
                raise CheckpointError(f"{index} names {shard!r}, which is no file of the folder")
        return [folder / shard for shard in shards], placed
    if (folder / SINGLE).is_file():
        return [folder / SINGLE], {}
    found = sorted(file.name for file in folder.glob("*.safetensors"))
    if found:
        raise CheckpointError(
            f"{folder} holds {some(found)}, but neither {SINGLE} nor {INDEX}, which says what "
            "belongs together"
        )
    pickles = sorted(
        file.name for file in folder.iterdir() if file.suffix in (".bin", ".pt", ".pth", ".ckpt")
    )
    if pickles:
        raise CheckpointError(
            f"{folder} holds pickled weights only ({some(pickles)}), which can run code when they "
            "are read: convert them to safetensors (where you trust them, load them and use "
            "safetensors.torch.save_file)"
        )
    raise CheckpointError(f"{folder} holds no weights: no {SINGLE} and no {INDEX}")


def some(names: list[str]) -> str:
    """List the first three names and count the others."""
    rest = len(names) - 3
    return ", ".join(names[:3]) + (f" and {rest} more" if rest > 0 else "")
