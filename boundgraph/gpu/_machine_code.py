"""Kernels in generated code, and what they need as machine code; private torch API."""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from boundgraph.gpu._inductor import pretended_gpu

_KERNEL = re.compile(r"async_compile\.triton\('(\w+)', '''(.*?)'''", re.S)


def kernel_sources(code: str) -> dict[str, str]:
    """Triton source by kernel name."""
    return dict(_KERNEL.findall(code))


def wrapper_text(code: str) -> str:
    """The generated host code, without the kernels' sources."""
    body = _KERNEL.sub("", code)
    return body.split("\ndef get_args(")[0].split("\ndef benchmark_compiled")[0]


@dataclass(frozen=True)
class Resources:
    """What one kernel in one configuration uses on sm_90, by the assembler.

    Args:
        registers: per thread.
        spilled: bytes of local memory per thread; above 0 means registers spill.
        shared: bytes of static shared memory per block.
    """

    kernel: str
    config: str
    registers: int
    spilled: int
    shared: int


def assemble(code: str) -> list[Resources]:
    """Compile every kernel and configuration of a graph to machine code and read its needs."""
    from torch._inductor.codecache import PyCodeCache

    found: list[Resources] = []
    with pretended_gpu(), tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        for name, source in kernel_sources(code).items():
            tuner = getattr(PyCodeCache.load(source), name)
            for config in tuner.configs:
                kernel = tuner._precompile_config(config).kernel
                path.write_bytes(kernel.asm["cubin"])
                found.append(_resources(name, str(config), path))
    return found


def _resources(name: str, config: str, cubin: Path) -> Resources:
    import triton

    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    command = [str(tool), "-res-usage", str(cubin)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    use = {key: int(value) for key, value in re.findall(r"(REG|STACK|SHARED):(\d+)", text)}
    return Resources(name, config, use["REG"], use["STACK"], use["SHARED"])
