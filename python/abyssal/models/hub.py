"""Find a checkpoint: a folder, the local hub cache, or the hub itself.

``resolve`` looks in that order and stops at the first place that holds a complete checkpoint, so a
model that was fetched once is opened without any request. From the hub it takes only what the
loader reads: top-level ``*.safetensors``, ``*.json``, ``*.jinja`` and the tokenizer's model file.
It tells the size and the free disk first, refuses when the disk is too small, and fetches file by
file (an interrupted fetch goes on where it stopped).

The cache layout is the one that huggingface_hub documents
(``models--owner--name/{refs,snapshots,blobs}``); reading it needs no import of that package.
``HF_ENDPOINT``, ``HF_HUB_CACHE``, ``HF_HOME`` and ``HF_HUB_OFFLINE`` are read at each call.
"""

import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from abyssal.errors import CheckpointError

DEFAULT_ENDPOINT = "https://huggingface.co"
TOKENIZER_FILES = ("tokenizer.model", "tiktoken.model")
UNSAFE_WEIGHTS = (".bin", ".pt", ".pth", ".ckpt", ".gguf")
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
_FILE_NAME = re.compile(r"[\w][\w.+-]*", re.ASCII)
_TRUE = {"1", "true", "yes", "on"}

Say = Callable[[str], None]


def bundled_model() -> Path:
    """Return the folder of the small model that comes with the package.

    Returns:
        The folder with ``config.json``, ``model.safetensors`` and the tokenizer files.

    Raises:
        CheckpointError: this installation was built without the model.
    """
    folder = Path(__file__).resolve().parent.parent / "assets" / "king_james"
    if not (folder / "config.json").is_file():
        raise CheckpointError(
            f"this installation holds no bundled model (looked in {folder}): give a folder "
            "or an owner/name with --model"
        )
    return folder


def resolve(
    path_or_name: str | os.PathLike[str], *, revision: str = "main", say: Say | None = None
) -> Path:
    """Return the folder that holds a checkpoint, fetching it when it is nowhere on this machine.

    Args:
        path_or_name: a folder, or ``owner/name`` on the hub. A folder that exists wins.
        revision: branch, tag or commit on the hub.
        say: takes one line at a time about what is fetched; default: lines on standard error.

    Returns:
        An existing folder. Files in it may be links into the hub cache.

    Raises:
        CheckpointError: no such folder or name, no safetensors weights, too little disk, or no
            answer from the hub. The message says where it looked.

    Guarantees: a complete copy in the cache is used without any request; nothing but weights,
        settings and tokenizer files is fetched; no code from the repository is run.
    """
    name = os.fspath(path_or_name)
    if not name:
        raise CheckpointError("the checkpoint is an empty string: give a folder or an owner/name")
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise CheckpointError(f"{folder} is a file: give the folder that holds config.json")
    if not _HUB_NAME.fullmatch(name) or ".." in name or "--" in name:
        raise CheckpointError(
            f"no folder {folder.absolute()}, and {name!r} is not an owner/name on the hub"
        )

    place = cache_folder() / f"models--{name.replace('/', '--')}"
    cached = _snapshot(place, revision)
    if cached is not None and not _missing_files(cached):
        return cached
    looked = f"no folder {folder.absolute()}, and no complete copy in the hub cache {place}"
    if offline():
        raise CheckpointError(f"{name}: {looked}; HF_HUB_OFFLINE forbids asking {endpoint()}")
    return _fetch(name, revision, place, looked, say or _say_on_stderr)


def cache_folder() -> Path:
    """Return this user's hub cache: ``HF_HUB_CACHE``, else in ``HF_HOME``, else the usual place."""
    explicit = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    if explicit:
        return Path(os.path.expandvars(explicit)).expanduser()
    home = os.environ.get("HF_HOME")
    if home:
        return Path(os.path.expandvars(home)).expanduser() / "hub"
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "huggingface" / "hub"


def endpoint() -> str:
    """Return the hub's address: ``HF_ENDPOINT`` or the public hub."""
    return (os.environ.get("HF_ENDPOINT") or DEFAULT_ENDPOINT).rstrip("/")


def offline() -> bool:
    """Return whether ``HF_HUB_OFFLINE`` or ``TRANSFORMERS_OFFLINE`` forbids asking the hub."""
    values = (os.environ.get("HF_HUB_OFFLINE"), os.environ.get("TRANSFORMERS_OFFLINE"))
    return any(value is not None and value.lower() in _TRUE for value in values)


def wanted(name: str) -> bool:
    """Return whether the loader or the tokenizer may read a repository's file of this name."""
    if not _FILE_NAME.fullmatch(name):
        return False
    return name.endswith((".safetensors", ".json", ".jinja")) or name in TOKENIZER_FILES


def human_bytes(count: int) -> str:
    """Write a number of bytes in decimal units, as disks are sold: ``4.7 MB``, ``671 GB``."""
    value = float(count)
    units = ["TB", "GB", "MB", "kB", "bytes"]
    unit = units.pop()
    while value >= 999.5 and units:
        value /= 1000.0
        unit = units.pop()
    if unit == "bytes":
        return f"{count} bytes"
    return f"{value:.0f} {unit}" if value >= 99.5 else f"{value:.1f} {unit}"


def _snapshot(place: Path, revision: str) -> Path | None:
    """Return the cached snapshot folder that ``revision`` names, or None."""
    reference = place / "refs" / revision
    commit = reference.read_text(encoding="utf-8").strip() if reference.is_file() else revision
    folder = place / "snapshots" / commit
    return folder if _FILE_NAME.fullmatch(commit) and folder.is_dir() else None


def _missing_files(snapshot: Path) -> list[str]:
    """Return the names that a complete checkpoint would also hold."""
    missing = [] if (snapshot / "config.json").is_file() else ["config.json"]
    index = snapshot / "model.safetensors.index.json"
    if index.is_file():
        try:
            shards = sorted(
                set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
            )
        except (ValueError, KeyError, TypeError, AttributeError):
            return [*missing, index.name]
        return missing + [shard for shard in shards if not (snapshot / str(shard)).is_file()]
    if not any(path.is_file() for path in snapshot.glob("*.safetensors")):
        missing.append("*.safetensors")
    return missing


def _fetch(name: str, revision: str, place: Path, looked: str, say: Say) -> Path:
    """Download the wanted files of one repository and return the snapshot folder."""
    from huggingface_hub import HfApi, hf_hub_download

    try:
        info = HfApi(endpoint=endpoint()).model_info(
            name, revision=revision, files_metadata=True, timeout=30
        )
    except (
        Exception
    ) as error:  # the HTTP library behind it differs between versions, and so do its exceptions
        raise CheckpointError(f"{name}: {looked}; {_reason(error)}") from error
    commit = info.sha
    if not commit:
        raise CheckpointError(f"{name}: {endpoint()} named no commit for revision {revision!r}")
    sizes = {file.rfilename: int(file.size or 0) for file in info.siblings or ()}
    files = _choose(name, sizes)

    folder = place / "snapshots" / commit
    needed = {file: size for file, size in files.items() if not (folder / file).is_file()}
    _check_disk(name, files, needed, place, say)
    # Settings first: a checkpoint that is not ours is then noticed before its weights are fetched.
    order = sorted(needed, key=lambda file: (file.endswith(".safetensors"), file))
    for number, file in enumerate(order, start=1):
        say(f"fetching {number} of {len(order)}: {file} ({human_bytes(needed[file])})")
        try:
            path = hf_hub_download(
                name, file, revision=commit, endpoint=endpoint(), cache_dir=str(place.parent)
            )
        except Exception as error:
            raise CheckpointError(
                f"{name}: {file} could not be fetched; {_reason(error)}; "
                "run the same command again to go on from here"
            ) from error
        if sizes[file] and os.path.getsize(path) != sizes[file]:
            raise CheckpointError(
                f"{name}: {file} has {os.path.getsize(path)} bytes, the hub lists {sizes[file]}: "
                f"remove {path} and try again"
            )
    # The branch points at the new commit only now that all of its files are here.
    reference = place / "refs" / revision
    if revision != commit:
        reference.parent.mkdir(parents=True, exist_ok=True)
        reference.write_text(commit, encoding="utf-8")
    missing = _missing_files(folder)
    if missing:
        raise CheckpointError(
            f"{name}: the repository's index names files it does not hold: {', '.join(missing[:4])}"
        )
    return folder


def _choose(name: str, sizes: Mapping[str, int]) -> dict[str, int]:
    """Return the wanted files with their sizes, or say why this repository cannot be loaded."""
    files = {file: size for file, size in sizes.items() if wanted(file)}
    if "config.json" not in files:
        raise CheckpointError(
            f"{name}: the repository has no config.json, so it is not a model checkpoint"
        )
    if not any(file.endswith(".safetensors") for file in files):
        others = sorted(file for file in sizes if file.endswith(UNSAFE_WEIGHTS))
        found = f"only {', '.join(others[:3])}" if others else "no weights at all"
        raise CheckpointError(
            f"{name}: the repository holds {found}; abyssal reads .safetensors files only "
            "(pickled weights can run code): convert the checkpoint first"
        )
    return files


def _check_disk(
    name: str, files: Mapping[str, int], needed: Mapping[str, int], place: Path, say: Say
) -> None:
    """Tell the size and the free disk, and refuse what does not fit."""
    existing = place
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    total = sum(needed.values())
    say(
        f"{name}: {len(needed)} of {len(files)} files to fetch from {endpoint()}, "
        f"{human_bytes(total)}; {human_bytes(free)} free at {existing}"
    )
    if total > free:
        raise CheckpointError(
            f"{name}: needs {human_bytes(total)} of disk, but {existing} has "
            f"{human_bytes(free)} free: "
            "make room or set HF_HUB_CACHE to a larger disk"
        )


def _reason(error: Exception) -> str:
    """Say in one line what the hub, or the way to it, answered."""
    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    address = endpoint()
    if status == 404:
        return f"{address} knows no such model or revision (404)"
    if status in (401, 403):
        return (
            f"{address} refuses access ({status}): private or gated models need a token "
            "(hf auth login)"
        )
    if status is not None:
        return f"{address} answered {status}"
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), "no details")
    return f"{address} could not be asked: {type(error).__name__}: {line[:200]}"


def _say_on_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
