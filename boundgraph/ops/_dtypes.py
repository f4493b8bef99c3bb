"""Names of dtypes in programs, and the torch dtypes they stand for."""

from __future__ import annotations

import torch

TORCH_DTYPES: dict[str, torch.dtype] = {
    "f16": torch.float16,
    "bf16": torch.bfloat16,
    "f32": torch.float32,
    "f64": torch.float64,
    "i8": torch.int8,
    "u8": torch.uint8,
    "i16": torch.int16,
    "i32": torch.int32,
    "i64": torch.int64,
    "bool": torch.bool,
    "c64": torch.complex64,
    "c128": torch.complex128,
}
_NAMES = {dtype: name for name, dtype in TORCH_DTYPES.items()}


def to_torch(name: str) -> torch.dtype:
    """The torch dtype of a name such as `f32`."""
    return TORCH_DTYPES[name]


def from_torch(dtype: torch.dtype) -> str:
    """The name of a torch dtype; TypeError for one that programs do not have."""
    name = _NAMES.get(dtype)
    if name is None:
        raise TypeError(f"tensors of {dtype} are not supported; known: {', '.join(TORCH_DTYPES)}")
    return name
