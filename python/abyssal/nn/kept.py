"""Compiled code that holds a module's weights, for as long as the module stays as it was."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Generic, TypeVar

from torch import nn

from abyssal.nn.linear import Linear
from abyssal.ops.native import unchanged

Compiled = TypeVar("Compiled")


def _parts(module: nn.Module) -> tuple[Mapping[str, object], Mapping[str, object]]:
    return module._modules, module._parameters


class Kept(Generic[Compiled]):
    """What was made of a module, and what the module was made of then.

    Args:
        compiled: What was made of it; None where nothing can be.
        module: The module. Its submodules and parameters are watched, at all depths.
        called: Submodules whose calls ``compiled`` takes over: one with a hook must be called.
            Their buffers are watched too.
    """

    def __init__(
        self, compiled: Compiled | None, module: nn.Module, called: tuple[nn.Module, ...] = ()
    ) -> None:
        self.compiled = compiled
        self._moves = Linear.moves
        places: list[tuple[Mapping[str, object], str]] = [
            (values, name)
            for part in module.modules()
            for values in _parts(part)
            for name, value in values.items()
            if value is not None
        ]
        places += [(part._buffers, name) for part in called for name in part._buffers]
        self._homes = [home for home, _ in places]
        self._names = [name for _, name in places]
        self._values = [home[name] for home, name in places]
        self._hooks = [
            hooks for part in called for hooks in (part._forward_hooks, part._forward_pre_hooks)
        ]

    @property
    def valid(self) -> bool:
        """Whether the module is still made of the same modules and weights."""
        moved = self._moves != Linear.moves
        return not moved and unchanged(self._homes, self._names, self._values)

    @property
    def hooked(self) -> bool:
        """Whether one of the called modules has a hook."""
        return any(self._hooks)

    def __reduce__(self) -> tuple[type, tuple[()]]:
        """Leave copies of the module to hand their own weights over."""
        return type(None), ()
