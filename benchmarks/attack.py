"""PGD against the interval-gradient attack, at equal gradient counts and equal time.

Trains a network briefly against PGD, then attacks the held-out images that it gets right.
The interval attack runs first. PGD then gets as many gradients per image as the interval
attack may have used, one bound propagation counted as one gradient (which flatters the
interval attack: a propagation costs far more), and after that as much time as it took.
Two controls jump where the interval attack does, without any bounds: to the corner that
the plain gradient points to, and to a random corner.

    python benchmarks/attack.py                        # the digits inside the package
    python benchmarks/attack.py --data mnist.npz --network small --eps 0.3 --epochs 2
    python benchmarks/attack.py --run runs/mnist --eps 0.15     # a network trained before
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from boundgraph.attacks import AttackResult, interval, pgd
from boundgraph.attacks._common import Search, find_loss, make_generator, sign
from boundgraph.attacks.interval import alternate
from boundgraph.attacks.pgd import Ascent
from boundgraph.cli._subject import load_subject
from boundgraph.data.batches import Batches
from boundgraph.data.dataset import DataSet
from boundgraph.data.load import load
from boundgraph.training.adversarial import AdversarialLoss
from boundgraph.training.networks import NETWORKS

# Bounds tried by one interval step at most: the first box and its growth up to the cap.
BOXES = 4


Timed = tuple[AttackResult, float]


def timed(attack: Callable[[], AttackResult]) -> Timed:
    """The result and its processor seconds, which a busy machine does not inflate."""
    started = time.process_time()
    result = attack()
    return result, time.process_time() - started


@dataclass(frozen=True)
class Row:
    """One line of the table; counts are per attacked image."""

    attack: str
    broken: int
    attacked: int
    gradients: float
    bounds: float
    seconds: float
    mean_margin: float

    @classmethod
    def of(cls, attack: str, timed: Timed) -> Row:
        result, seconds = timed
        count = len(result.broken)
        return cls(
            attack,
            int(result.broken.sum()),
            count,
            result.gradient_evaluations / count,
            result.bound_evaluations / count,
            seconds,
            float(result.margin.mean()),
        )


def train(data: DataSet, options: argparse.Namespace) -> nn.Module:
    """A network trained against PGD for a few epochs, epsilon growing over the first half."""
    torch.manual_seed(options.seed)
    model = NETWORKS[options.network](data.image_shape, data.classes)
    loss = AdversarialLoss(model, options.eps, steps=options.train_steps, seed=options.seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    batches = Batches(data.x_train, data.y_train, 64, options.seed)
    total = options.epochs * len(batches)
    for epoch in range(options.epochs):
        for number, (x, y) in enumerate(batches.epoch(epoch), epoch * len(batches)):
            loss.eps.fill_(options.eps * min(1.0, 2 * number / total))
            optimizer.zero_grad()
            F.cross_entropy(model(loss.perturb(x, y)), y).backward()
            optimizer.step()
    return model.eval()


def jumping(
    model: nn.Module, x: Tensor, y: Tensor, options: argparse.Namespace, corner: str
) -> AttackResult:
    """The interval attack with its direction replaced by one that needs no bounds."""
    search = Search.begin(model, x, y, options.eps, (0.0, 1.0))
    loss = find_loss("margin", search.classes)
    ascent = Ascent(search, options.steps, None, loss, early_stop=True)
    random = make_generator(None, options.seed)

    def move(points: Tensor, index: Tensor) -> Tensor:
        if corner == "gradient":
            direction = sign(search.gradient(points, index, loss)[0])
        else:
            direction = sign(torch.rand(points.shape, generator=random) - 0.5)
        return search.project(points + 2 * search.eps[index] * direction, index)

    alternate(search, ascent, move, random, options.restarts, options.moves, random_start=False)
    return search.finish()


def within(seconds: float, attack: Callable[[int], Timed], restarts: int) -> Timed:
    """An attack with as many restarts as fit into the time, found by doubling."""
    best, spent = attack(restarts)
    while spent < seconds and not bool(best.broken.all()) and restarts < 4096:
        restarts = max(restarts + 1, int(restarts * min(2.0, seconds / spent)))
        following, took = attack(restarts)
        if took > seconds * 1.15:
            break
        best, spent = following, took
    return best, spent


def compare(model: nn.Module, x: Tensor, y: Tensor, options: argparse.Namespace) -> Iterator[Row]:
    """All attacks on the images that the model gets right, one after the other."""
    right = model(x).argmax(1) == y
    x, y, eps, steps = x[right], y[right], options.eps, options.steps

    def ours(corner: bool) -> Timed:
        return timed(
            lambda: interval(
                model, x, y, eps, steps=steps, restarts=options.restarts,
                interval_steps=options.moves, corner=corner,
            )
        )  # fmt: skip

    first = ours(corner=True)
    yield Row.of("interval", first)
    yield Row.of("interval, no corner jump", ours(corner=False))
    for corner in ("gradient", "random"):
        result = timed(partial(jumping, model, x, y, options, corner))
        yield Row.of(f"control: {corner} corner", result)
    budget = options.restarts * ((options.moves + 1) * steps + options.moves * BOXES)
    restarts = -(-budget // steps)
    for loss in ("margin", "ce"):

        def attack(count: int, loss: str = loss) -> Timed:
            search = partial(pgd, model, x, y, eps, steps=steps, loss=loss, seed=options.seed)
            return timed(lambda: search(restarts=count))

        yield Row.of(f"pgd {loss}, equal gradients", attack(restarts))
        yield Row.of(f"pgd {loss}, equal time", within(first[1], attack, restarts))


HEAD = f"{'attack':<28}{'broken':>12}{'gradients':>11}{'bounds':>8}{'seconds':>9}{'margin':>9}"


def line(row: Row) -> str:
    return (
        f"{row.attack:<28}{row.broken:>5} of {row.attacked:<4}{row.gradients:>10.1f}"
        f"{row.bounds:>8.2f}{row.seconds:>9.2f}{row.mean_margin:>9.4f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", default=None, help="run folder of a trained network to attack")
    parser.add_argument("--data", default="digits", help="digits, mnist, or a path to an .npz")
    parser.add_argument("--network", default="tiny", choices=sorted(NETWORKS))
    parser.add_argument("--eps", type=float, default=0.15)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--train-images", type=int, default=None)
    parser.add_argument("--train-steps", type=int, default=5)
    parser.add_argument("--limit", type=int, default=200, help="held-out images")
    parser.add_argument("--steps", type=int, default=20, help="of each run of PGD")
    parser.add_argument("--restarts", type=int, default=2, help="of the interval attack")
    parser.add_argument("--moves", type=int, default=3, help="interval steps a restart")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="print one JSON object at the end")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.run is not None:
        subject = load_subject(options.run, None, None)
        report(options, subject.data, subject.model, f"network of {options.run}")
        return
    data = load(options.data)
    if options.train_images:
        kept = options.train_images
        data = DataSet(
            data.name, data.x_train[:kept], data.y_train[:kept], data.x_test, data.y_test,
            data.classes,
        )  # fmt: skip
    started = time.perf_counter()
    model = train(data, options)
    took = time.perf_counter() - started
    report(options, data, model, f"network {options.network}, trained against PGD in {took:.0f} s")


def report(options: argparse.Namespace, data: DataSet, model: nn.Module, description: str) -> None:
    x, y = data.x_test[: options.limit], data.y_test[: options.limit]
    clean = float((model(x).argmax(1) == y).float().mean())
    print(
        f"{data.summary()}\n{description}, clean accuracy {clean:.1%} of {len(x)}, "
        f"eps {options.eps:g}"
    )
    print(HEAD, flush=True)
    rows = []
    for row in compare(model, x, y, options):
        rows.append(row)
        print(line(row), flush=True)
    print(
        "gradients, bounds: single-sample evaluations per attacked image; seconds: processor "
        "time; margin: the mean of the smallest found, lower is stronger"
    )
    if options.json:
        print(json.dumps({"options": vars(options), "rows": [vars(row) for row in rows]}))


if __name__ == "__main__":
    main()
