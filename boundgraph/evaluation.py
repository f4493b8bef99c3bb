"""Clean, attacked and certified accuracy of a classifier."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from boundgraph.accuracy import Evaluation, Masks, Progress, reporter
from boundgraph.attacks._common import (
    AttackResult,
    check_batch,
    margins,
    require_eval_mode,
    require_finite_weights,
    run_model,
)
from boundgraph.attacks.pgd import check_counts, pgd
from boundgraph.compiler import CompileOptions, compile
from boundgraph.data.labelled import LabelledData, labelled_batches, sample_count
from boundgraph.domains.balls import samples_of
from boundgraph.domains.enclosure import corners
from boundgraph.domains.interval import Interval
from boundgraph.domains.regions import ball
from boundgraph.domains.specs import Margin
from boundgraph.domains.symbolic import Symbolic
from boundgraph.errors import (
    ConfigError,
    DataError,
    NonFiniteError,
    RegionError,
    SoundnessError,
)
from boundgraph.options import CASCADE, EXPENSIVE, for_certifying, methods_of
from boundgraph.parameter_regions import ParameterRegions, require_inside
from boundgraph.runtime.chunked import ChunkedProgram
from boundgraph.runtime.module import BoundProgram
from boundgraph.runtime.precision import arithmetic


def evaluate(
    model: nn.Module,
    data: LabelledData,
    eps: float,
    *,
    method: str | Sequence[str] = "ibp",
    clip: tuple[float, float] | None = (0.0, 1.0),
    norm: float = math.inf,
    attack_steps: int = 40,
    restarts: int = 1,
    batch_size: int = 256,
    limit: int | None = None,
    seed: int = 0,
    progress: bool | Progress | None = None,
    max_memory: int | None = None,
    rounding: str = "nearest",
    accumulate: str = "float64",
    parameters: ParameterRegions | None = None,
) -> Evaluation:
    """Clean, attacked and certified accuracy over balls of a norm.

    The attack is PGD on the margin from random starts, and comes first, as in `verify`: methods
    of `crown` and beyond skip what it broke. The first method bounds every sample, though, and
    a certificate of one that the attack broke is a bug in BoundGraph, and raised as such.

    Args:
        model: in evaluation mode, returns logits `[batch, classes]`; not changed.
        data: `(x, y)` tensors, or an iterable of such batches (a `DataLoader`).
        eps: radius in the units of the model's input.
        method: bound method, or several: each is tried on what the ones before it left
            undecided, so put the cheap one first; `"cascade"` for those of `verify`.
        clip: range of valid inputs, which cuts the region; None for no cut.
        norm: of the ball: `math.inf`, 2, 1 or any p >= 1.
        attack_steps: gradient steps of each restart; 0 for no attack.
        restarts: random starts of the attack.
        batch_size: samples at a time where `data` is `(x, y)`.
        limit: evaluate only the first samples.
        seed: of the attack.
        progress: True for a line on stderr; a callable gets the evaluation so far and the
            total number of samples (None where it is not known).
        max_memory: bytes that bounds may take; by default 1 GiB, on a GPU half of what is
            free.
        rounding: `"sound"` certifies the exact real network, `"nearest"` up to rounding of the
            bounds; see `docs/soundness.md`.
        accumulate: with `"sound"` and ibp, sums of centres are taken in `"float64"`, which loses a
            tenth of the width that `"dtype"` does and takes half as long again.
        parameters: regions of parameters, as for `boundgraph.compile`: a sample is certified for
            all weights in them. Clean and attacked accuracy are of the model as it is.

    Raises:
        ConfigError: a bad option, a model in training mode, or reduced precision.
        DataError: no samples, or batches that are not `(x, y)`.
        RegionError: eps < 0, or inputs outside `clip`.
        NonFiniteError: NaN or infinity in the inputs, the weights or the logits.
        SpecError: labels out of range, or an output that is not `[batch, classes]`.
        UnsupportedError, CaptureError: the model cannot be bounded.
        SoundnessError: a certificate contradicts a concrete run.

    Example:
        >>> model = nn.Linear(4, 3).eval()
        >>> x = torch.rand(10, 4)
        >>> result = evaluate(model, (x, model(x).argmax(1)), eps=0.01)
        >>> result.clean, result.certified <= result.attacked
        (1.0, True)
    """
    options = _Options(
        eps,
        methods_of(CASCADE if method == "cascade" or tuple(method) == ("cascade",) else method),
        clip,
        norm,
        attack_steps,
        restarts,
        batch_size,
        limit,
        seed,
        max_memory,
        rounding,
        accumulate,
        parameters or {},
    )
    require_eval_mode(model)
    require_finite_weights(model)
    require_inside(model, options.parameters)
    with arithmetic(model, rounding), torch.inference_mode(False):
        run = _Run(model, options)
        show, total = reporter(progress), sample_count(data, limit)
        for x, y in labelled_batches(data, batch_size, limit):
            run.add(x, y)
            show(run.result(), total)
        if not run.clean:
            raise DataError("the data holds no samples: there is nothing to evaluate")
        return run.result()


@dataclass(frozen=True)
class _Options:
    eps: float
    methods: tuple[str, ...]
    clip: tuple[float, float] | None
    norm: float
    attack_steps: int
    restarts: int
    batch_size: int
    limit: int | None
    seed: int
    max_memory: int | None
    rounding: str = "nearest"
    accumulate: str = "float64"
    parameters: ParameterRegions = field(default_factory=dict)

    def __post_init__(self) -> None:
        if isinstance(self.eps, bool) or not isinstance(self.eps, int | float):
            raise ConfigError(f"eps must be a number, got {self.eps!r}")
        if not math.isfinite(self.eps) or self.eps < 0:
            raise RegionError(f"eps must be a finite number >= 0, got {self.eps}")
        check_counts(attack_steps=self.attack_steps, restarts=self.restarts)
        for method in self.methods:
            CompileOptions(**for_certifying(method, self.rounding, self.accumulate))
        for name in ("batch_size", "limit", "max_memory"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ConfigError(f"{name} must be an integer >= 1, got {value!r}")

    @property
    def attack(self) -> str:
        if not self.attack_steps:
            return "no attack"
        starts = f" from {self.restarts} starts" if self.restarts > 1 else ""
        return f"PGD of {self.attack_steps} steps{starts}"


class _Run:
    """An evaluation in progress."""

    def __init__(self, model: nn.Module, options: _Options) -> None:
        self.model, self.options = model, options
        self.device = next((p.device for p in model.parameters()), None)
        self.programs: dict[str, ChunkedProgram] = {}
        self.clean: list[Tensor] = []
        self.attacked: list[Tensor] = []
        self.certified: list[Tensor] = []
        self.started = time.perf_counter()

    def add(self, x: Tensor, y: Tensor) -> None:
        """Evaluate one batch."""
        options = self.options
        check_batch(self.model, x, y)
        device = self.device or x.device
        x, y = x.detach().to(device).clone(), y.detach().to(device)
        region = ball(x, options.eps, options.norm, options.clip)
        logits = run_model(self.model, x)
        if not bool(torch.isfinite(logits).all()):
            raise NonFiniteError(
                "the model's outputs hold NaN or infinity; check its weights and the data's range"
            )
        Margin(logits.shape[1]).check_labels(y, len(x))
        y = y.long()
        margin = margins(logits, y)
        clean = margin > 0
        broken = torch.zeros_like(clean)
        if options.attack_steps and bool(clean.any()):
            broken, margin = self._attack(x, y, clean, margin)
        box, hopeful = corners(region, options.rounding), clean & ~broken
        lowest = self._lowest_margins(box, y, clean, hopeful, logits.shape[1])
        certified = proves(lowest)
        self._contradiction(certified & ~hopeful, margin, lowest, y)
        attacked = hopeful
        for verdicts, new in (
            (self.clean, clean),
            (self.attacked, attacked),
            (self.certified, certified),
        ):
            verdicts.append(new.cpu())

    def result(self) -> Evaluation:
        masks = Masks(*(torch.cat(part) for part in (self.clean, self.attacked, self.certified)))
        return Evaluation(
            n=len(masks.clean),
            clean_correct=int(masks.clean.sum()),
            attacked_correct=int(masks.attacked.sum()),
            certified_correct=int(masks.certified.sum()),
            eps=float(self.options.eps),
            method="+".join(self.options.methods),
            attack=self.options.attack,
            seconds=time.perf_counter() - self.started,
            masks=masks,
        )

    def _lowest_margins(
        self, box: Interval, y: Tensor, clean: Tensor, hopeful: Tensor, classes: int
    ) -> Tensor:
        """`[batch]`: the best lower bound of the smallest margin over the other classes.

        The first method bounds every sample, wrong ones included: a certificate for one of
        those would be a contradiction worth hearing of. Later ones bound those that are
        `clean`, the expensive ones only those that are `hopeful`, as no attack broke them.
        """
        lowest = torch.full(y.shape, -torch.inf, dtype=box.lower.dtype, device=y.device)
        for position, method in enumerate(self.options.methods):
            open_ = ~proves(lowest)
            if position:
                open_ &= hopeful if method in EXPENSIVE else clean
            index = open_.nonzero().squeeze(1)
            if not len(index):
                break
            region = samples_of(box, index)
            program = self._program(method, region.lower, classes)
            for at, bounds in program.run(region, y[index]):
                rows = lower_bounds(bounds).scatter(1, y[index][at].unsqueeze(1), torch.inf)
                # amin carries NaN along, and `proves` takes no NaN for a proof.
                # A later method may be looser than one before, on samples that neither proves.
                found = rows.amin(1)
                lowest[index[at]] = torch.where(found < lowest[index[at]], lowest[index[at]], found)
        return lowest

    def _program(self, method: str, example: Tensor, classes: int) -> ChunkedProgram:
        if method not in self.programs:
            options = self.options
            chosen = for_certifying(method, options.rounding, options.accumulate)

            def build(pair: Tensor) -> BoundProgram:
                region = ball(pair, options.eps, options.norm)
                spec, weights = Margin(classes), options.parameters
                return compile(self.model, region, spec=spec, parameters=weights, **chosen)

            self.programs[method] = ChunkedProgram(
                build, example, options.max_memory, options.parameters
            )
        return self.programs[method]

    def _attack(self, x: Tensor, y: Tensor, clean: Tensor, margin: Tensor) -> tuple[Tensor, Tensor]:
        """Which samples break, and the margins found: the clean ones where wrong already."""
        options, index = self.options, clean.nonzero().squeeze(1)
        found: AttackResult = pgd(
            self.model,
            x[index],
            y[index],
            options.eps,
            steps=options.attack_steps,
            restarts=options.restarts,
            clip=options.clip,
            norm=options.norm,
            loss="margin",
            seed=options.seed + len(self.clean),
        )
        broken = torch.zeros_like(clean).index_copy(0, index, found.broken)
        return broken, margin.index_copy(0, index, found.margin)

    def _contradiction(self, bad: Tensor, margin: Tensor, lowest: Tensor, y: Tensor) -> None:
        if not bool(bad.any()):
            return
        at = int(bad.nonzero()[0])
        index = sum(len(part) for part in self.clean) + at
        raise SoundnessError(
            f"sample {index} (label {int(y[at])}) is certified by "
            f"{'+'.join(self.options.methods)} at eps {self.options.eps:g}: every margin is at "
            f"least {float(lowest[at]):.9g}; but the model reaches {float(margin[at]):.9g} inside "
            f"the region. {int(bad.sum())} sample(s) of this batch contradict their certificate. "
            "This is a bug in BoundGraph (or, where both numbers are near zero, float rounding): "
            "please report it with the model"
        )


def lower_bounds(bounds: Interval | Symbolic | Tensor) -> Tensor:
    """`[batch, rows]`, whatever form the bounds have."""
    if isinstance(bounds, Symbolic):
        bounds = bounds.concretize()
    return bounds.lower if isinstance(bounds, Interval) else bounds


def proves(lowest: Tensor) -> Tensor:
    """Whether a lower bound of the smallest margin is a proof: above 0, not NaN, finite."""
    return (lowest > 0) & torch.isfinite(lowest)
