"""Generated CUDA code on the CPU, its kernels in Triton's interpreter; private API of both."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from boundgraph.errors import GpuReportError


class _Library:
    """NumPy in place of libdevice, which the interpreter cannot call."""

    _NAMES: Mapping[str, str] = {"sqrt_rn": "sqrt", "div_rn": "divide", "pow": "power"}

    def __getattr__(self, name: str) -> Callable[..., Any]:
        import numpy as np
        import triton
        from triton.runtime.interpreter import TensorHandle

        tensor = triton.language.core.tensor
        plain = getattr(np, self._NAMES.get(name, name), None)
        fn: Any = (lambda x: 1 / np.sqrt(x)) if name == "rsqrt" else plain
        if fn is None:
            raise GpuReportError(f"the interpreter has no stand-in for libdevice.{name}")

        def call(*args: Any) -> Any:
            like = next(arg for arg in args if isinstance(arg, tensor))
            given = (arg.handle.data if isinstance(arg, tensor) else arg for arg in args)
            with np.errstate(all="ignore"):
                result = np.asarray(fn(*given))
            if result.dtype != bool:
                result = result.astype(like.handle.data.dtype)
            return tensor(TensorHandle(result, like.handle.dtype), like.type)

        return call


class _Kernels:
    """In place of AsyncCompile: loads kernels; CachingAutotuner itself honours the interpreter."""

    def triton(self, name: str, source: str, **_: Any) -> Any:
        from torch._inductor.codecache import PyCodeCache

        return getattr(PyCodeCache.load(source), name)

    def wait(self, scope: Any) -> None:
        pass


_TO_CPU = (
    ("empty_strided_cuda(", "empty_strided_cpu("),
    ("with torch.cuda._DeviceGuard(0):", "if True:"),
    ("device='cuda:0'", "device='cpu'"),
    ("torch.cuda.set_device(0)", "pass"),
    ("device(type='cuda', index=0)", "device('cpu')"),
    ("AsyncCompile()", "_Kernels()"),
    ("get_raw_stream(0)", "0"),
)


def on_cpu(code: str) -> Callable[[list[Any]], Any]:
    """The generated wrapper with its kernels in the interpreter."""
    import torch._inductor.runtime.triton_helpers as helpers
    import triton

    if not triton.knobs.runtime.interpret:
        raise GpuReportError(
            "running kernels in the interpreter needs TRITON_INTERPRET=1 in the environment "
            "before triton is imported"
        )
    helpers.libdevice = _Library()  # type: ignore[attr-defined]
    for old, new in _TO_CPU:
        code = code.replace(old, new)
    scope: dict[str, Any] = {"_Kernels": _Kernels, "__name__": "generated", "__file__": __file__}
    exec(compile(code, "generated", "exec"), scope)
    call: Callable[[list[Any]], Any] = scope["call"]
    return call
