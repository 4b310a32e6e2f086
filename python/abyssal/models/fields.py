"""Reading one typed value at a time from a configuration file's dictionary.

Every reader names the file, the key, what was found and what is allowed, so that a wrong
configuration is understood from its message alone. What a key means is ``config.py``'s business.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from abyssal.errors import CheckpointError

_MISSING = object()


class Fields:
    """A dictionary read with checks.

    Args:
        values: the parsed JSON object.
        source: what to call the file in messages, for example ``/models/v3/config.json``.
    """

    def __init__(self, values: Mapping[str, Any], source: str) -> None:
        self.values = values
        self.source = source

    def fail(self, message: str) -> CheckpointError:
        """Make the error that says ``message`` about this file."""
        return CheckpointError(f"{self.source}: {message}")

    def has(self, key: str) -> bool:
        """Tell whether ``key`` is there with a value other than null."""
        return self.values.get(key) is not None

    def _get(self, key: str, default: Any) -> Any:  # noqa: ANN401 - the value's type is what is being checked
        value = self.values.get(key)
        if value is not None:
            return value
        if default is _MISSING:
            state = "is null" if key in self.values else "is missing"
            raise self.fail(f"{key!r} {state}, but the model cannot be built without it")
        return default

    def integer(self, key: str, *, minimum: int = 1, default: Any = _MISSING) -> Any:  # noqa: ANN401
        """Read a whole number of at least ``minimum``; ``default`` where it is missing or null."""
        value = self._get(key, default)
        if value is default:
            return value
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.fail(f"{key!r} must be a whole number, found {value!r}")
        if value < minimum:
            raise self.fail(f"{key!r} must be at least {minimum}, found {value}")
        return value

    def number(
        self,
        key: str,
        *,
        minimum: float = -math.inf,
        above: float = -math.inf,
        default: Any = _MISSING,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401
        """Read a finite number that is at least ``minimum`` and greater than ``above``."""
        value = self._get(key, default)
        if value is default:
            return value
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self.fail(f"{key!r} must be a number, found {value!r}")
        if not math.isfinite(value):
            raise self.fail(f"{key!r} must be finite, found {value!r}")
        if value < minimum:
            raise self.fail(f"{key!r} must be at least {minimum}, found {value}")
        if value <= above:
            raise self.fail(f"{key!r} must be greater than {above}, found {value}")
        return float(value)

    def boolean(self, key: str, *, default: bool) -> bool:
        """Read true or false."""
        value = self._get(key, default)
        if not isinstance(value, bool):
            raise self.fail(f"{key!r} must be true or false, found {value!r}")
        return value

    def choice(self, key: str, allowed: Sequence[str], *, default: Any = _MISSING) -> Any:  # noqa: ANN401
        """Read a string that must be one of ``allowed``."""
        value = self._get(key, default)
        if value is default:
            return value
        if value not in allowed:
            raise self.fail(f"{key!r} must be one of {', '.join(allowed)}, found {value!r}")
        return value

    def ids(self, key: str) -> tuple[int, ...]:
        """Read a token id, a list of them, or nothing at all, as a tuple."""
        value = self.values.get(key)
        if value is None:
            return ()
        values = value if isinstance(value, list) else [value]
        for each in values:
            if isinstance(each, bool) or not isinstance(each, int) or each < 0:
                raise self.fail(f"{key!r} must be a token id or a list of them, found {value!r}")
        return tuple(values)

    def section(self, key: str) -> Fields | None:
        """Read a nested object; None where it is missing or null."""
        value = self.values.get(key)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.fail(f"{key!r} must be an object, found {value!r}")
        return Fields(value, f"{self.source}, {key}")
