"""Interleaved timing, and the peak memory of a step in a process of its own."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

Run = Callable[[], object]
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}


def interleaved(runs: dict[str, Run], repeats: int, clock: str, warmup: int = 1) -> dict[str, list]:
    """Seconds of each run, round by round; the order changes from round to round."""
    now = CLOCKS[clock]
    for run in runs.values():
        for _ in range(warmup):
            run()
    names, found = list(runs), {name: [] for name in runs}
    for turn in range(repeats):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            started = now()
            runs[name]()
            found[name].append(now() - started)
    return found


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The ratio of the least times: other work on the machine only ever adds to a round."""
    return min(ours) / min(theirs)


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def peak_of(run: Run, warmup: int = 2) -> int:
    """Bytes by which the process grows at most during a run, after some that warm it up.

    Linux only. The caller's process should have been started by `in_own_process`, which
    makes the allocator give memory back at once.
    """
    for _ in range(warmup):
        run()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    run()
    return _status("VmHWM") - before


def in_own_process(script: str, arguments: Sequence[str], timeout: float) -> dict | str:
    """What a script printed as its last line, in JSON; or why there is nothing."""
    if not Path("/proc/self/clear_refs").exists():
        return "peak memory is only measured on Linux"
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
    try:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", script, *arguments],
            env=environment,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
    except subprocess.TimeoutExpired:
        return f"not finished after {timeout:g} s"
    if done.returncode:
        return (done.stderr.strip().splitlines() or ["failed without a message"])[-1]
    return json.loads(done.stdout.strip().splitlines()[-1])
