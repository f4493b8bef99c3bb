"""Re-prove a certificate without the compiler and without torch.

    python checker.py out.json [--weights weights.npz] [--exact] [--json]

What is proved: for every input of the region (a box, perhaps met with a ball), the network *over
the real numbers* (stored weights taken as exact reals) makes some row of every clause positive.
Nothing in the file is trusted:

- Weights must hash to what the file says, and the file to its own seal.
- Recorded slopes choose among lines whose offsets are derived here, so any slope is sound.
- A recorded bound of an intermediate value is used only after it was derived here, from the
  region and the bounds before it.
- At last a row of every clause is bounded below, by what was derived, and must be above 0.

An op that is unknown here is refused. So are overflow and NaN. Numbers are float64 with proved
error bounds, or exact rationals: asked for, or where float64 leaves a small network undecided.
What one has to trust: this file, `checker_network.py` (what ops mean), `checker_maps.py` (what
linear maps do), `checker_bounds.py` (how bounds are derived), `checker_numbers.py` (what rounding
costs), Python, numpy, and IEEE 754 hardware.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

if __package__:
    from boundgraph.verification.checker_bounds import Engine
    from boundgraph.verification.checker_network import Network
    from boundgraph.verification.checker_numbers import Arithmetic, Array, Refused, require
else:  # run as a script, beside the others
    from checker_bounds import Engine  # type: ignore[import-not-found,no-redef]
    from checker_network import Network  # type: ignore[import-not-found,no-redef]
    from checker_numbers import (  # type: ignore[import-not-found,no-redef]
        Arithmetic,
        Array,
        Refused,
        require,
    )

FORMAT = "boundgraph certificate 1"
DERIVED = ("folded.", "input.")  # tensors that no file of a model's weights holds
DTYPES = ("float16", "float32", "float64", "int64", "int32", "bool")
CHUNK = 1 << 23  # numbers in a block of rows
EXACT_WORK = 100_000  # rationals are tried below this many products


@dataclass(frozen=True)
class Checked:
    """What a check came to.

    Args:
        accepted: the claim was proved again.
        reason: why not, or what was proved.
        margins: the lower bound proved for one row of each clause.
        arithmetic: `"float64"` or `"rational"`.
        seconds: wall-clock time.
    """

    accepted: bool
    reason: str
    margins: tuple[float, ...]
    arithmetic: str
    seconds: float

    def __bool__(self) -> bool:
        return self.accepted


def fingerprint(tensor: Array) -> str:
    """SHA-256 over dtype, shape and little-endian elements in row-major order."""
    tensor = np.ascontiguousarray(tensor)
    head = f"{tensor.dtype.name} {list(tensor.shape)}\n".encode()
    return hashlib.sha256(
        head + tensor.astype(tensor.dtype.newbyteorder("<")).tobytes()
    ).hexdigest()


def seal(document: Mapping[str, Any]) -> str:
    """SHA-256 over the document without its seal; finds accidents, not forgers."""
    kept = {key: value for key, value in document.items() if key != "seal"}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def load(path: str | Path) -> dict[str, Any]:
    """Read the file; Refused where it is no certificate."""
    try:
        document = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise Refused(f"{path} is not JSON: {error}") from error
    found = document.get("format") if isinstance(document, dict) else None
    require(found == FORMAT, f"{path} is not a {FORMAT!r}, but {found!r}")
    return document  # type: ignore[no-any-return]


def read_tensors(
    document: Mapping[str, Any], folder: Path, weights: str | Path | None = None
) -> dict[str, Array]:
    """The constants, from beside the certificate or within it, each checked by its hash.

    With `weights`, the model's parameters are taken from there, whatever they are called: a hash
    tells which is which. Only what was computed from them, and inputs, are still the recorded ones.
    """
    given = {} if weights is None else {fingerprint(t): t for t in _archive(weights).values()}
    recorded: dict[str, Array] | None = None
    tensors = {}
    for name, entry in document["tensors"].items():
        require(entry["dtype"] in DTYPES, f"{name} has dtype {entry['dtype']!r}")
        tensor = given.get(entry["sha256"])
        if tensor is None:
            if recorded is None:
                recorded = _recorded(document, folder)
            known = name in recorded and (weights is None or name.startswith(DERIVED))
            require(known, f"the weights have no tensor {name!r} (none has its hash)")
            tensor = recorded[name].reshape(entry["shape"])
        same = tensor.dtype.name == entry["dtype"] and fingerprint(tensor) == entry["sha256"]
        same = same and list(tensor.shape) == entry["shape"]
        require(same, f"the tensor {name!r} is not the one that was certified (its hash differs)")
        require(bool(np.isfinite(tensor).all()), f"the tensor {name!r} holds NaN or infinity")
        tensors[name] = tensor
    return tensors


def _recorded(document: Mapping[str, Any], folder: Path) -> dict[str, Array]:
    stored = document["storage"]
    if stored["kind"] != "embedded":
        return _archive(folder / Path(stored["file"]).name)
    return {
        name: np.frombuffer(base64.b64decode(text), dtype=np.dtype(entry["dtype"]))
        for (name, entry), text in zip(document["tensors"].items(), stored["data"], strict=True)
    }


def _archive(path: str | Path) -> dict[str, Array]:
    """The tensors of an `.npz` or `.safetensors` file; neither format runs code when read."""
    path = Path(path)
    require(path.is_file(), f"the weights {path} are missing; name them with --weights")
    if path.suffix == ".safetensors":
        try:
            from safetensors.numpy import load_file
        except ImportError:
            raise Refused("reading .safetensors needs: pip install safetensors") from None
        return dict(load_file(path))
    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive}


class Check:
    """One check in one arithmetic."""

    def __init__(
        self, document: Mapping[str, Any], tensors: Mapping[str, Array], exact: bool
    ) -> None:
        self.arithmetic = Arithmetic(exact)
        self.document = document
        self.network = Network(document["program"], dict(tensors), self.arithmetic)
        inputs = document["program"]["inputs"]
        proof = document["proof"]
        region = [
            self._ends(document["region"][given["name"]], i) for i, given in enumerate(inputs)
        ]
        slopes = {
            self.network.position[name]: self._ends(pair, self.network.position[name])
            for name, pair in proof["slopes"].items()
        }
        balls = {
            i: self._ball(document["region"][given["name"]]["ball"], i)
            for i, given in enumerate(inputs)
            if "ball" in document["region"][given["name"]]
        }
        self.engine = Engine(self.network, region, slopes, balls)

    def run(self) -> tuple[float, ...]:
        """Derive everything anew; the proved margin of each clause."""
        recorded = self.document["proof"]["bounds"]
        for name in recorded:
            require(name in self.network.position, f"a bound of the unknown value {name}")
        for at, step in enumerate(self.network.steps):
            if step.parts or step.source >= 0:
                self._establish(at, recorded.get(step.name))
        return self._conclude()

    def numbers(self, texts: list[str], count: int | None = None) -> Array:
        """Hexadecimal floats, exactly."""
        require(count is None or len(texts) == count, f"{len(texts)} numbers instead of {count}")
        floats = np.array([float.fromhex(text) for text in texts])
        require(bool(np.isfinite(floats).all()), "NaN or infinity in the certificate")
        return self.arithmetic.array(floats)

    def _ends(self, pair: Mapping[str, list[str]], at: int) -> tuple[Array, Array]:
        size = self.network.steps[at].size
        return self.numbers(pair["lower"], size), self.numbers(pair["upper"], size)

    def _ball(self, given: Mapping[str, Any], at: int) -> tuple[Array, Any, int]:
        center = self.numbers(given["center"], self.network.steps[at].size)
        radius, norm = self.numbers([given["radius"]])[0], given["norm"]
        require(norm in (1, 2) and radius >= 0, f"a ball of norm {norm!r} and radius {radius}")
        return center, radius, norm

    def _establish(self, at: int, recorded: Mapping[str, list[str]] | None) -> None:
        """Enclose a value by its interval, and by its recorded bound once that is derived."""
        low, high = self.engine.forward(at)
        if recorded is None:
            return self.engine.set(at, low, high)
        claimed = self._ends(recorded, at)
        for side, (own, claim) in enumerate(zip((low, high), claimed, strict=True)):
            open_ = np.flatnonzero(own < claim if side == 0 else own > claim)
            sign = 1 if side == 0 else -1
            for rows in self.blocks(open_):
                found = self.engine.backward(at, self.unit_rows(at, rows, sign))
                held = np.asarray(found >= sign * claim[rows], dtype=bool)
                require(
                    bool(held.all()),
                    f"a recorded {('lower', 'upper')[side]} bound of "
                    f"{self.network.steps[at].name} does not follow",
                )
        low, high = np.maximum(low, claimed[0]), np.minimum(high, claimed[1])
        require(bool(np.all(low <= high)), f"empty bounds of {self.network.steps[at].name}")
        return self.engine.set(at, low, high)

    def blocks(self, rows: Array) -> list[Array]:
        """Rows in blocks that fit in memory."""
        widest = max(step.size for step in self.network.steps)
        count = max(1, CHUNK // max(1, widest))
        return [rows[i : i + count] for i in range(0, len(rows), count)]

    def unit_rows(self, at: int, rows: Array, sign: int) -> Array:
        made = np.zeros((len(rows), self.network.steps[at].size))
        made[np.arange(len(rows)), rows] = sign
        return self.arithmetic.array(made)

    def _conclude(self) -> tuple[float, ...]:
        """A positive lower bound for the witness of every clause."""
        spec, proof = self.document["spec"], self.document["proof"]
        clauses, witnesses = spec["clauses"], proof["witnesses"]
        require(len(clauses) > 0 and len(clauses) == len(witnesses), "clauses without witnesses")
        for clause, row in zip(clauses, witnesses, strict=True):
            known = type(row) is int and 0 <= row < len(spec["matrix"])
            require(known and row in clause, f"row {row} is no row of the clause {clause}")
        out = self.network.output
        size = self.network.steps[out].size
        rows = sorted(set(witnesses))
        matrix = np.stack([self.numbers(spec["matrix"][row], size) for row in rows])
        offset = self.numbers([spec["offset"][row] for row in rows])
        chosen = {}
        for name, table in proof["row_slopes"].items():
            at = self.network.position[name]
            count = self.network.steps[at].size
            require(at in self.engine.slopes, f"row slopes of {name}, which is no curve")
            own = [self.numbers(table[str(row)], count) for row in rows]
            chosen[at] = np.stack(own)
        ar = self.arithmetic
        walked = self.engine.backward(out, matrix, chosen)
        bounds = ar.down(np.maximum(walked, self.engine.least(matrix, out)) + offset)
        for row, bound in zip(rows, bounds, strict=True):
            require(bound > 0, f"row {row} is only bounded by {float(bound):.6g}, not above 0")
        found = dict(zip(rows, bounds, strict=True))
        return tuple(float(found[row]) for row in witnesses)


def check_document(
    document: Mapping[str, Any], tensors: Mapping[str, Array], *, exact: bool | None = None
) -> Checked:
    """Check a loaded certificate.

    Args:
        document: as `load` returns it.
        tensors: as `read_tensors` returns them.
        exact: rationals (True) or float64 (False) only; None takes float64 first.
    """
    started = time.perf_counter()

    def came_to(accepted: bool, reason: str, margins: tuple[float, ...], rational: bool) -> Checked:
        kind = "rational" if rational else "float64"
        return Checked(accepted, reason, margins, kind, time.perf_counter() - started)

    reason = "unchecked"
    for rational in (False, True) if exact is None else (exact,):
        try:
            _require_plain_rounding()
            require(document["seal"] == seal(document), "the certificate was altered (its seal)")
            check = Check(document, tensors, rational)
            if exact is None and rational and _work(check.network) > EXACT_WORK:
                break
            margins = check.run()
        except Refused as error:
            reason = str(error)
            continue
        except (
            KeyError,
            IndexError,
            TypeError,
            ValueError,
            AttributeError,
            ArithmeticError,
        ) as error:
            reason = f"malformed certificate: {type(error).__name__}: {error}"
            continue
        clauses = len(margins)
        return came_to(True, f"proved: all {clauses} clauses hold on the region", margins, rational)
    return came_to(False, reason, (), bool(exact))


def check_file(
    path: str | Path, *, weights: str | Path | None = None, exact: bool | None = None
) -> Checked:
    """Check a certificate file; `weights` names an `.npz` or `.safetensors` file."""
    try:
        document = load(path)
        tensors = read_tensors(document, Path(path).parent, weights)
    except Refused as error:
        return Checked(False, str(error), (), "float64", 0.0)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = f"malformed certificate: {type(error).__name__}: {error}"
        return Checked(False, reason, (), "float64", 0.0)
    return check_document(document, tensors, exact=exact)


def _work(network: Network) -> int:
    return sum(tensor.size for tensor in network.tensors.values()) * max(
        step.size for step in network.steps
    )


def _require_plain_rounding() -> None:
    """Round to nearest, with subnormals: what the error bounds assume of the processor."""
    one, tiny = np.float64(1.0), np.float64(2.0**-1074)
    half = np.float64(2.0**-53)
    nearest = one + half == one and one + 1.5 * half > one and -one - 1.5 * half < -one
    require(bool(nearest and tiny * 1.0 > 0), "the processor does not round as IEEE 754 says")


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0: proved again. 1: not. 2: the arguments are wrong."""
    parser = argparse.ArgumentParser(prog="checker.py", description="Re-prove a certificate.")
    parser.add_argument("certificate", type=Path)
    parser.add_argument("--weights", type=Path, help="an .npz or .safetensors file of the model")
    parser.add_argument("--exact", action="store_true", help="rational arithmetic throughout")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(arguments)
    if not given.certificate.is_file():
        parser.error(f"{given.certificate} does not exist")
    found = check_file(given.certificate, weights=given.weights, exact=given.exact or None)
    if given.json:
        print(json.dumps(found.__dict__))
    else:
        word = "accepted" if found.accepted else "REJECTED"
        print(f"{word}: {found.reason} ({found.arithmetic}, {found.seconds:.2f} s)")
        if found.accepted:
            print(f"smallest margin {min(found.margins):.9g} over {len(found.margins)} clauses")
    return 0 if found.accepted else 1


if __name__ == "__main__":
    sys.exit(main())
