"""What certificates cost: making one, checking it, and its size.

    python benchmarks/certificates.py [RUN_DIR ...] [--eps 0.02,0.04]

For the `small` network, trained on MNIST for 100 plain steps, and for the network of each run
folder of `boundgraph train`; on the first held-out images. Processor seconds, one thread.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

import torch
from _networks import plain_network
from torch import Tensor, nn

import boundgraph as bg
from boundgraph.cli._subject import load_subject
from boundgraph.errors import CertificateError
from boundgraph.verification import certify, check_certificate
from boundgraph.verification.spec import normalize

LIMIT = 60.0


def measure(name: str, model: nn.Module, x: Tensor, label: int, eps: float) -> None:
    """Print one line: how the proof was found, seconds to make and to check it, and its size."""
    region = bg.LinfBall(x, eps, (0.0, 1.0))
    with torch.no_grad():
        output = model(x)
    clauses = normalize(bg.Margin(output.shape[1]), output, label)
    started = time.process_time()
    left = lambda: LIMIT - (time.process_time() - started)  # noqa: E731
    try:
        made = certify(model, [region], clauses, time_left=left)
    except CertificateError as error:
        print(f"{name:24} {eps:<8g} {error}", flush=True)
        return
    making = time.process_time() - started
    with tempfile.TemporaryDirectory() as folder:
        path = made.save(Path(folder) / "proof.json")
        size = sum(os.path.getsize(file) for file in Path(folder).iterdir())
        started = time.process_time()
        found = check_certificate(path)
        checking = time.process_time() - started
    proof = made.document["proof"]
    bounds = sum(len(pair["lower"]) for pair in proof["bounds"].values())
    print(
        f"{name:24} {eps:<8g} {proof['found_by']:12} margin {min(found.margins):8.4f}  made in "
        f"{making:5.2f} s, {'accepted' if found else 'REJECTED'} in {checking:5.2f} s, "
        f"{size / 1e6:.2f} MB, {bounds} bounds",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="*", type=Path)
    parser.add_argument("--eps", default="0.02,0.04", help="radii, with commas")
    parser.add_argument("--images", type=int, default=3)
    parser.add_argument("--data", default="mnist", help="for the plain network; none leaves it out")
    given = parser.parse_args()
    torch.set_num_threads(1)
    subjects = [] if given.data == "none" else [("plain small", *plain_network(given.data))]
    for run in given.runs:
        subject = load_subject(str(run), None, None)
        subjects.append((run.name, subject.model, subject.data.x_test, subject.data.y_test))
    for name, model, x, y in subjects:
        for index in range(given.images):
            for eps in map(float, given.eps.split(",")):
                measure(f"{name} #{index}", model, x[index : index + 1], int(y[index]), eps)


if __name__ == "__main__":
    main()
