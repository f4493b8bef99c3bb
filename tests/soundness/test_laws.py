"""Laws that relate bounds to each other: points, subsets, batches, margins."""

from __future__ import annotations

import random

import pytest
import torch
from random_models import random_box, random_model
from torch import nn

import boundgraph as bg
from boundgraph.domains import Interval
from boundgraph.testing import excess, model_allowance, sample_point, symbols_of

SEEDS = range(10)
METHODS = ("ibp", "symbolic", "mix", "crown")


def drawn(seed: int, batch: int = 3) -> tuple[nn.Module, list[bg.Box]]:
    model, shapes = random_model(f"law/{seed}")
    rng = random.Random(f"law/{seed}")
    return model, [random_box(shape, rng, batch) for shape in shapes]


def bounds_of(program: bg.BoundProgram, *regions: bg.Box) -> Interval:
    found = program(*regions)
    return Interval(found.lower.detach(), found.upper.detach())


def allowed_for(
    model: nn.Module, program: bg.BoundProgram, regions: list[bg.Box], result: Interval
) -> torch.Tensor:
    """Declared rounding, over the terms and the size of this program's sums."""
    (moved,) = model_allowance(model, *regions)
    if program.method == "ibp":
        return 2.0 * moved
    plain = bounds_of(bg.compile(model, *regions), *regions)
    ratio = (result.upper - result.lower) / (plain.upper - plain.lower)
    symbolic = bg.compile(model, *regions, method="symbolic", schedule="forward")
    terms = 2.0 + symbols_of(symbolic, *regions)
    return terms * moved * ratio.nan_to_num(1.0, 1e6).clamp(1.0, 1e6)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_region_without_width_gives_the_value(seed: int) -> None:
    model, boxes = drawn(seed)
    points = [bg.Box(box.center, box.center) for box in boxes]
    with torch.no_grad():
        value = model(*(box.center for box in boxes))
    for method in METHODS:
        program = bg.compile(model, *points, method=method)
        found = bounds_of(program, *points)
        allowed = allowed_for(model, program, points, found)
        assert not (excess(value, found, allowed) > 0).any(), method
        assert ((found.upper - found.lower) <= 2 * allowed).all(), method


@pytest.mark.parametrize("seed", SEEDS)
def test_ibp_is_monotone_in_the_region(seed: int) -> None:
    model, boxes = drawn(seed)
    program = bg.compile(model, *boxes)
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for box in boxes:
        ends = [sample_point(box.interval(), generator) for _ in range(2)]
        parts.append(bg.Box(torch.minimum(*ends), torch.maximum(*ends)))
    wide, narrow = bounds_of(program, *boxes), bounds_of(program, *parts)
    assert not (excess(narrow, wide, allowed_for(model, program, boxes, wide)) > 0).any()


@pytest.mark.parametrize("seed", SEEDS)
def test_samples_do_not_see_each_other(seed: int) -> None:
    """A batch is bounded like its samples one by one, in any order and any company."""
    model, boxes = drawn(seed)
    for method in METHODS:
        program = bg.compile(model, *boxes, method=method)
        whole = bounds_of(program, *boxes)
        allowed = allowed_for(model, program, boxes, whole)
        for index in range(3):
            one = slice(index, index + 1)
            alone = bounds_of(program, *(bg.Box(b.lower[one], b.upper[one]) for b in boxes))
            row = Interval(whole.lower[one], whole.upper[one])
            assert not (excess(alone, row, allowed[one]) > 0).any(), method
            assert not (excess(row, alone, allowed[one]) > 0).any(), method
        order = torch.tensor([2, 0, 1])
        mixed = bounds_of(program, *(bg.Box(b.lower[order], b.upper[order]) for b in boxes))
        row = Interval(whole.lower[order], whole.upper[order])
        assert not (excess(mixed, row, allowed[order]) > 0).any(), method
        # One sample's region grows without bound: the others' bounds stay.
        grown = [
            bg.Box(
                torch.cat([b.lower[:2], b.lower[2:] - 1e3]),
                torch.cat([b.upper[:2], b.upper[2:] + 1e3]),
            )
            for b in boxes
        ]
        rest = bounds_of(program, *grown)
        first = Interval(whole.lower[:2], whole.upper[:2])
        assert not (excess(Interval(rest.lower[:2], rest.upper[:2]), first, allowed[:2]) > 0).any()


class WithMargins(nn.Module):
    """Margins as an ordinary last layer, for one label."""

    def __init__(self, model: nn.Module, label: int) -> None:
        super().__init__()
        self.model, self.label = model, label

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = self.model(x)
        return logits[:, self.label : self.label + 1] - logits


@pytest.mark.parametrize("seed", SEEDS)
def test_margins_are_those_of_an_explicit_layer_or_tighter(seed: int) -> None:
    torch.manual_seed(seed)
    classes = 3 if seed % 2 else 40  # both ways of forming the rows of the last layer
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6), nn.Tanh())
    if seed != 0:
        model.append(nn.Linear(6, classes))
    else:
        classes = 6
    model = model.double()
    center = torch.randn(3, 4, dtype=torch.float64)
    box = bg.Box(center - 0.1 * torch.rand_like(center), center + 0.1 * torch.rand_like(center))
    generator = torch.Generator().manual_seed(seed)
    for method in METHODS:
        program = bg.compile(model, box, method=method, spec=bg.Margin(classes=classes))
        for label in (0, 2):
            labels = torch.full((3,), label)
            folded = program(box, labels=labels)
            explicit_model = WithMargins(model, label)
            explicit = bg.compile(explicit_model, box, method=method)
            loose = bounds_of(explicit, box)
            allowed = allowed_for(explicit_model, explicit, [box], loose)
            tight = Interval(folded.lower.detach(), folded.upper.detach())
            assert not (excess(tight, loose, allowed) > 0).any(), method
            assert (tight.lower[:, label] == 0).all() and (tight.upper[:, label] == 0).all()
            for _ in range(10):
                with torch.no_grad():
                    value = explicit_model(sample_point(box.interval(), generator))
                assert not (excess(value, tight, allowed) > 0).any(), method


@pytest.mark.parametrize("per_sample", [False, True])
def test_linear_specs_enclose(per_sample: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 5)).double()
    center = torch.randn(3, 4, dtype=torch.float64)
    box = bg.Box(center - 0.2, center + 0.2)
    lead = (3,) if per_sample else ()
    matrix = torch.randn(*lead, 2, 5, dtype=torch.float64)
    offset = torch.randn(*lead, 2, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    for method in METHODS:
        program = bg.compile(model, box, method=method, spec=bg.LinearSpec(matrix, offset))
        found = bounds_of(program, box)
        (moved,) = model_allowance(model, box)
        allowed = 64 * moved.sum() * matrix.abs().amax()
        for _ in range(20):
            with torch.no_grad():
                out = model(sample_point(box.interval(), generator))
            rows = torch.matmul(matrix, out.unsqueeze(-1)).squeeze(-1) + offset
            assert not (excess(rows, found, allowed) > 0).any(), method


def test_the_allowance_stays_small_where_normalisation_bounds_values() -> None:
    """It would hide every fault if it grew by 1/√eps with each layer."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=True)
    model = nn.TransformerEncoder(layer, 8, nn.LayerNorm(16), enable_nested_tensor=False).eval()
    region = bg.LinfBall(torch.randn(2, 3, 16), eps=0.5)
    (moved,) = model_allowance(model, region)
    found = bounds_of(bg.compile(model, region), region)
    assert float(moved.max()) < 1e-3 * float((found.upper - found.lower).max())


def test_the_allowance_does_not_overflow_where_bounds_do_not() -> None:
    class Steep(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x * 3.4e38 - 3.4e38) * 0.5

    region = bg.LinfBall(torch.ones(1, 3), eps=1e-4)
    (moved,) = model_allowance(Steep(), region)
    assert bool(moved.isfinite().all())
