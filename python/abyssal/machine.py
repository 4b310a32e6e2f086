"""What this machine has: memory, and the processor's name for a report."""

from __future__ import annotations

import os
import platform
from pathlib import Path


def memory_bytes(root: Path = Path("/")) -> int | None:
    """Return the memory that this process may use in all: the machine's, or its container's.

    Args:
        root: where the system's files are looked up.

    Returns:
        Bytes, or None where the system does not say.
    """
    limits = [limit for limit in (_physical(), *_container_limits(root)) if limit]
    return min(limits) if limits else None


def _physical() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return None


def _container_limits(root: Path) -> list[int]:
    """Return the limits of control groups; "max" and absurdly large numbers are none."""
    limits = []
    for name in ("sys/fs/cgroup/memory.max", "sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            text = (root / name).read_text(encoding="ascii").strip()
        except (OSError, ValueError):
            continue
        if text.isdigit() and int(text) < 2**60:
            limits.append(int(text))
    return limits


def processor_name(root: Path = Path("/")) -> str:
    """Return the processor's name as the system gives it, else its architecture."""
    try:
        for line in (
            (root / "proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        ):
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
