"""Certificates: a record of a proof that `checker.py` proves again without the compiler."""

from __future__ import annotations

import base64
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from boundgraph.domains.regions import Box, Region
from boundgraph.errors import BoundGraphError, CertificateError
from boundgraph.verification import checker
from boundgraph.verification._record import hexadecimal, record_program, record_region
from boundgraph.verification._search import Proof, Search
from boundgraph.verification.checker import Checked
from boundgraph.verification.checker_numbers import Refused
from boundgraph.verification.spec import Clauses

EMBED_BELOW = 1 << 20


@dataclass(frozen=True, eq=False)
class Certificate:
    """A proof that can be checked on its own.

    Args:
        document: the record; `docs/certificates.md` describes its fields.
        tensors: the constants of the program, by name.
    """

    document: dict[str, Any]
    tensors: dict[str, np.ndarray]

    def save(self, path: str | Path, *, embed: bool | None = None) -> Path:
        """Write the certificate, and its weights into it or into an `.npz` beside it.

        Args:
            path: of the certificate, usually `*.json`.
            embed: keep the weights inside the file; by default below 1 MiB.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        size = sum(tensor.nbytes for tensor in self.tensors.values())
        storage: dict[str, Any]
        if embed if embed is not None else size < EMBED_BELOW:
            data = [base64.b64encode(t.tobytes()).decode() for t in self.tensors.values()]
            storage = {"kind": "embedded", "data": data}
        else:
            beside = path.with_suffix(".npz")
            np.savez(beside, **self.tensors)  # type: ignore[arg-type]
            storage = {"kind": "file", "file": beside.name}
        path.write_text(json.dumps(_sealed({**self.document, "storage": storage}), indent=1))
        return path

    def check(self, *, exact: bool | None = None) -> Checked:
        """Prove it again; see `check_certificate`."""
        return checker.check_document(_sealed(self.document), self.tensors, exact=exact)


def certify(
    model: nn.Module,
    regions: Sequence[Region | Tensor],
    clauses: Clauses,
    *,
    preferred: Sequence[float] | None = None,
    method: str = "",
    time_left: Callable[[], float] = lambda: math.inf,
) -> Certificate:
    """Make a certificate that a property of one sample holds, checked before it is returned.

    The proof is found anew, with the checker's own arithmetic: intervals, backward linear
    bounds, and slopes that are searched for the rows of the property.

    Args:
        model: in evaluation mode.
        regions: of one sample: a box, or a tensor that is not perturbed, for each input.
        clauses: the property in conjunctive normal form.
        preferred: for each row how likely it can be proved, e.g. its known lower bound.
        method: what proved the property before, for the record.
        time_left: seconds that the search may take, asked now and then.

    Raises:
        CertificateError: no proof was found, or the model has an op that the checker does
            not know.
    """
    record = record_program(model, regions)
    matrix = clauses.matrix.detach().cpu().double().numpy()
    document: dict[str, Any] = {
        "format": checker.FORMAT,
        "claim": "every clause has a row above 0 at every input of the region, over the reals",
        "method": method,
        "versions": _versions(),
        "program": record.program,
        "tensors": {
            name: {
                "dtype": tensor.dtype.name,
                "shape": list(tensor.shape),
                "sha256": checker.fingerprint(tensor),
            }
            for name, tensor in record.tensors.items()
        },
        "storage": {"kind": "memory"},
        "region": record_region(record.program, regions),
        "spec": {
            "matrix": [hexadecimal(row) for row in matrix],
            "offset": hexadecimal(clauses.offset.detach().cpu().double().numpy()),
            "clauses": [list(clause) for clause in clauses.clauses],
        },
    }
    order = [0.0] * len(matrix) if preferred is None else list(preferred)
    try:
        proof = Search(document, record.tensors, time_left).find(order)
    except Refused as error:
        raise CertificateError(f"no certificate: {error}") from error
    document["proof"] = _proof(proof)
    made = Certificate(document, record.tensors)
    again = made.check(exact=False)
    if not again:
        raise CertificateError(f"no certificate: the checker refuses it: {again.reason}")
    return made


def check_certificate(
    certificate: Certificate | str | Path,
    model: nn.Module | None = None,
    *,
    weights: str | Path | None = None,
    exact: bool | None = None,
) -> Checked:
    """Prove a certificate again, independently of the compiler.

    Args:
        certificate: a file, or one just made.
        model: also require that this model, as it is now, is the one that was certified:
            capturing it gives the same program and weights of the same hash.
        weights: an `.npz` or `.safetensors` file that must hold the parameters.
        exact: rational arithmetic (True), float64 with error bounds (False), or float64
            first and rationals where a small network stays undecided (None).

    Returns:
        What the check came to, true as a condition only if the claim was proved again.
    """
    started = time.perf_counter()
    if isinstance(certificate, Certificate):
        document, tensors, found = _sealed(certificate.document), certificate.tensors, None
    else:
        path = Path(certificate)
        if not path.is_file():
            raise CertificateError(f"the certificate {path} does not exist")
        try:
            document = checker.load(path)
            tensors = checker.read_tensors(document, path.parent, weights)
        except (Refused, KeyError, TypeError, ValueError, AttributeError) as error:
            return Checked(False, f"{error}", (), "float64", time.perf_counter() - started)
    found = checker.check_document(document, tensors, exact=exact)
    if not found or model is None:
        return found
    difference = _difference(model, document, tensors)
    if difference is None:
        return found
    return Checked(False, difference, (), found.arithmetic, time.perf_counter() - started)


def _difference(
    model: nn.Module, document: dict[str, Any], tensors: dict[str, np.ndarray]
) -> str | None:
    """In what a model differs from the certified one."""
    regions: list[Region | Tensor] = []
    for given in document["program"]["arguments"]:
        if given["fixed"]:
            regions.append(torch.from_numpy(tensors["input." + given["name"]].copy()))
            continue
        entry = next(e for e in document["program"]["inputs"] if e["name"] == given["name"])
        blank = torch.zeros(entry["shape"], dtype=getattr(torch, given["dtype"]))
        regions.append(Box(blank, blank))
    try:
        now = record_program(model, regions)
    except BoundGraphError as error:
        return f"the model cannot be compared with the certificate: {error}"
    if now.program != document["program"]:
        return "the model is another program than the one that was certified"
    for name, entry in document["tensors"].items():
        if name not in now.tensors or checker.fingerprint(now.tensors[name]) != entry["sha256"]:
            return f"the model's {name!r} is not the one that was certified (its hash differs)"
    return None


def _proof(proof: Proof) -> dict[str, Any]:
    return {
        "found_by": proof.method,
        "witnesses": proof.witnesses,
        "bounds": proof.bounds,
        "slopes": proof.slopes,
        "row_slopes": proof.row_slopes,
    }


def _sealed(document: dict[str, Any]) -> dict[str, Any]:
    plain = json.loads(json.dumps(document))
    return {**plain, "seal": checker.seal(plain)}


def _versions() -> dict[str, str]:
    return {
        "python": sys.version.split()[0],
        "numpy": np.__version__,
        "torch": torch.__version__,
        "boundgraph": _own_version(),
    }


def _own_version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("boundgraph")
    except PackageNotFoundError:
        return "unknown"
