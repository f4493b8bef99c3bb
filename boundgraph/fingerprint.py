"""What a captured model depends on besides its parameters and inputs: its plain attributes.

A program compiled for a model reads parameters and buffers live, but numbers, flags,
functions and submodules were settled when the model was captured. A cache of programs
must tell two states of them apart.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from boundgraph.ops.custom import generation

_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size)
_QUICK = (int, str, bool, type(None))
_TABLES = ("_parameters", "_buffers", "_modules")
# What every module has, hooks above all; said only where there is something in it.
_COMMON = frozenset(vars(nn.Module())) - {"training"}


class _Same:
    """A key part that equals only itself; it keeps the object alive, so no id is reused."""

    def __init__(self, target: Any) -> None:
        self.target = target

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.target is self.target

    def __hash__(self) -> int:
        return id(self.target)


def fingerprint(model: nn.Module) -> tuple[Any, ...]:
    """A hashable key that changes when the model's structure, or a plain attribute, or which of
    its names share a tensor does.

    So it does when an op of the user's is registered or removed.

    Globals and closures that its code reads are not covered, nor are attributes of objects
    that are neither modules, containers nor plain values.
    """
    modules = model.named_modules(remove_duplicate=False)
    parts = ((name, type(module), _tables(module), _attributes(module)) for name, module in modules)
    return (generation(), _sharing(model), *parts)


def changed(old: tuple[Any, ...], new: tuple[Any, ...]) -> list[str]:
    """Paths of the attributes in which two fingerprints of one model differ."""
    before = {name: dict(attributes) for name, _, _, attributes in old[2:]}
    found = []
    for name, _, _, attributes in new[2:]:
        known = before.get(name, {})
        found += [f"{name}.{key}".lstrip(".") for key, v in attributes if known.get(key) != v]
    return found


def _sharing(model: nn.Module) -> tuple[int, ...]:
    """A number for each tensor under each of its names, the same for the same tensor."""
    seen: dict[int, int] = {}
    modules = model.named_modules(remove_duplicate=False)
    tensors = (t for _, m in modules for t in (*m._parameters.values(), *m._buffers.values()))
    return tuple(seen.setdefault(id(tensor), len(seen)) for tensor in tensors)


def _tables(module: nn.Module) -> tuple[Any, ...]:
    tensors = (*module._parameters.items(), *module._buffers.items())
    return tuple((name, None if t is None else (t.shape, t.dtype)) for name, t in tensors)


def _attributes(module: nn.Module) -> tuple[Any, ...]:
    return tuple(
        (name, _key(value))
        for name, value in vars(module).items()
        if name not in _TABLES and (name not in _COMMON or value)
    )


def _key(value: Any) -> Any:
    if type(value) in _QUICK:
        return type(value), value
    if isinstance(value, _PLAIN):
        # 1, 1.0 and True are equal, and nan is not equal to itself.
        return type(value), repr(value)
    if isinstance(value, list | tuple | set | frozenset):
        return type(value), tuple(_key(item) for item in value)
    if isinstance(value, dict):
        return type(value), tuple((_key(k), _key(v)) for k, v in value.items())
    return _Same(value)
