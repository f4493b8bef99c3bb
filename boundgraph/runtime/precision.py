"""Certification in the precision that the numbers claim."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from boundgraph.errors import ConfigError
from boundgraph.ir.program import Value
from boundgraph.ops._dtypes import to_torch

_REDUCED = ("tf32", "bf16")
# torch fills these modules at run time, where a type checker cannot look.
_BACKENDS: Any = torch.backends


@contextmanager
def certified_precision(model: nn.Module) -> Iterator[None]:
    """Run a certification in full float32 or float64.

    Autocast, half-precision weights and reduced-precision matrix products are refused:
    their rounding, near 1e-3, is beyond what a bound computed in them may claim. cuDNN's
    TF32 convolutions, which torch switches on by default, are switched off meanwhile.

    Raises:
        ConfigError: naming what is reduced and the line that changes it.
    """
    devices = {tensor.device.type for tensor in model.parameters()} or {"cpu"}
    for device in sorted(devices):
        if device in ("cpu", "cuda") and torch.is_autocast_enabled(device):
            raise ConfigError(
                "certification under autocast would claim more than half precision can carry; "
                "evaluate outside torch.autocast"
            )
    _refuse_half(model)
    _refuse_reduced_products(devices)
    convolution = _BACKENDS.cudnn.conv
    before = convolution.fp32_precision
    try:
        if "cuda" in devices:
            convolution.fp32_precision = "ieee"
        yield
    finally:
        if "cuda" in devices:
            convolution.fp32_precision = before


@contextmanager
def sound_precision(model: nn.Module, tensors: Sequence[Tensor]) -> Iterator[None]:
    """Full precision, and products that are sums of products.

    The error analysis covers any order of summation but not algorithms that transform the
    operands first. Convolutions by Winograd or Fourier transforms are switched off meanwhile:
    NNPACK on a CPU, cuDNN on a GPU. Results flushed to zero are covered; operands flushed to
    zero are not, so subnormal numbers flushed to zero by a processor flag are refused.

    Raises:
        ConfigError: naming what is reduced or flushed and the line that changes it.
    """
    devices = {tensor.device.type for tensor in tensors} | {"cpu"}
    _refuse_flushed()
    with certified_precision(model), ExitStack() as stack:
        stack.enter_context(_BACKENDS.nnpack.flags(enabled=False))
        if "cuda" in devices:
            stack.enter_context(_BACKENDS.cudnn.flags(enabled=False, allow_tf32=False))
        yield
    # A library loaded meanwhile (compiled code, say) may have set the flag.
    _refuse_flushed()


def arithmetic(model: nn.Module, rounding: str) -> AbstractContextManager[None]:
    """The floating-point settings that bounds of this rounding rely on."""
    if rounding != "sound":
        return certified_precision(model)
    return sound_precision(model, (*model.parameters(), *model.buffers()))


def _refuse_flushed() -> None:
    """Look at what the processor does, in this thread and in those of torch's pool."""
    subnormal = torch.full((1 << 16,), 2.0**-140)
    doubled = (subnormal + subnormal) * 2.0**100
    if not bool((doubled == 2.0**-39).all()):
        raise ConfigError(
            "subnormal numbers are flushed to zero, which loses operands that a rounding-sound "
            "bound must count; call torch.set_flush_denormal(False)"
        )


def check_dtype(value: Value, tensor: Tensor) -> None:
    """Raise unless a tensor has the dtype that a sound program was compiled for.

    Raises:
        ConfigError: naming the value and both dtypes.
    """
    if tensor.dtype != to_torch(value.type.dtype):
        raise ConfigError(
            f"{value} was compiled as {value.type.dtype} and is {tensor.dtype} now; the rounding "
            "that this program accounts for is that of the former. Compile again"
        )


def _refuse_half(model: nn.Module) -> None:
    half = [
        f"{name} ({parameter.dtype})"
        for name, parameter in model.named_parameters()
        if parameter.dtype in (torch.float16, torch.bfloat16)
    ]
    if half:
        raise ConfigError(
            f"certification needs float32 or float64 weights, but {len(half)} parameter(s) have "
            f"half precision, e.g. {half[0]}; call model.float()"
        )


def _refuse_reduced_products(devices: set[str]) -> None:
    watched = []
    if "cpu" in devices:
        watched += [
            ("mkldnn.matmul", _BACKENDS.mkldnn.matmul.fp32_precision),
            ("mkldnn.conv", _BACKENDS.mkldnn.conv.fp32_precision),
        ]
    if "cuda" in devices:
        watched.append(("cuda.matmul", _BACKENDS.cuda.matmul.fp32_precision))
    reduced = [(name, value) for name, value in watched if value in _REDUCED]
    if reduced:
        name, value = reduced[0]
        raise ConfigError(
            f"torch.backends.{name}.fp32_precision is {value!r}: products would carry about "
            "three digits, too few for a certificate. Call "
            "torch.set_float32_matmul_precision('highest') or set it to 'ieee'"
        )
