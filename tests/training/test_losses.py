import copy
import itertools
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from boundgraph.compiler import TRAINING_METHODS
from boundgraph.errors import ConfigError, DataError, NonFiniteError, SpecError
from boundgraph.training._fusion import clean_losses
from boundgraph.training.adversarial import AdversarialLoss
from boundgraph.training.initialization import WeightAverage, initialize_for_ibp
from boundgraph.training.losses import MixedLoss, TrainingLoss, gradient_norms
from boundgraph.training.recipes import PRESETS, RECIPES, get_recipe, recipe_from_dict
from boundgraph.training.step import compile_step

EPS = 0.05


def mlp(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 4))


def batch(size: int = 10, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(size, 6, generator=generator)
    return x, torch.randint(0, 4, (size,), generator=generator)


def worst_logits(model: nn.Sequential, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Interval bounds by hand: lower and upper ends, weights split by sign."""
    lower, upper = (x - EPS).clamp(0, 1), (x + EPS).clamp(0, 1)
    first, last = model[1], model[3]
    up, down = first.weight.clamp(min=0), first.weight.clamp(max=0)
    lower, upper = (
        F.relu(lower @ up.T + upper @ down.T + first.bias),
        F.relu(upper @ up.T + lower @ down.T + first.bias),
    )
    rows = last.weight - last.weight[y].unsqueeze(1)
    worst = torch.einsum("bcn,bn->bc", rows.clamp(min=0), upper)
    worst = worst + torch.einsum("bcn,bn->bc", rows.clamp(max=0), lower)
    return worst + last.bias - last.bias[y].unsqueeze(1)


def test_the_loss_is_the_mix_of_clean_and_worst_case_cross_entropy():
    model, (x, y) = mlp(), batch()
    loss_fn = MixedLoss(model, EPS, subset=4, alpha=0.3)
    index = torch.tensor([7, 0, 3, 5])
    parts = loss_fn(x, y, return_parts=True, index=index)
    worst = worst_logits(model, x[index], y[index])
    clean, bound = F.cross_entropy(model(x), y), F.cross_entropy(worst, y[index])
    torch.testing.assert_close(parts.clean_loss, clean.detach())
    torch.testing.assert_close(parts.bound_loss, bound.detach())
    torch.testing.assert_close(parts.loss, 0.7 * clean + 0.3 * bound)
    others = torch.ones_like(worst).scatter(1, y[index].unsqueeze(1), 0).bool()
    safe = torch.stack([row[keep].max() < 0 for row, keep in zip(worst, others, strict=True)])
    assert parts.certified_accuracy == safe.float().mean()


def test_gradients_equal_those_of_the_formula():
    model, (x, y) = mlp(), batch()
    MixedLoss(model, EPS, subset=None, alpha=0.6)(x, y).backward()
    found = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    by_hand = 0.4 * F.cross_entropy(model(x), y) + 0.6 * F.cross_entropy(
        worst_logits(model, x, y), y
    )
    by_hand.backward()
    for mine, parameter in zip(found, model.parameters(), strict=True):
        torch.testing.assert_close(mine, parameter.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", TRAINING_METHODS)
def test_the_bound_loss_is_at_least_the_loss_of_any_point_of_the_region(method):
    model, (x, y) = mlp(), batch()
    parts = MixedLoss(model, EPS, method=method, subset=None)(x, y, return_parts=True)
    attacked = AdversarialLoss(model, EPS, steps=5, seed=0).perturb(x, y)
    assert parts.bound_loss >= F.cross_entropy(model(attacked), y) - 1e-6


def test_mix_is_never_looser_than_ibp():
    model, (x, y) = mlp(), batch()
    losses = [
        float(MixedLoss(model, EPS, method=m, subset=None)(x, y, return_parts=True).bound_loss)
        for m in ("mix", "ibp")
    ]
    assert losses[0] <= losses[1] + 1e-6


def test_draws_are_distinct_uniform_and_reproducible():
    model = mlp()
    loss_fn, again = (MixedLoss(model, EPS, subset=3, seed=5) for _ in range(2))
    counts = torch.zeros(8)
    for _ in range(2000):
        index = loss_fn.draw(8)
        assert torch.equal(index, again.draw(8))
        assert len(set(index.tolist())) == 3
        counts[index] += 1
    assert (counts / 2000 - 3 / 8).abs().max() < 0.05
    assert loss_fn.draw(3) is None and loss_fn.draw(2) is None


def test_one_program_serves_every_batch_size():
    loss_fn = MixedLoss(mlp(), EPS, subset=4)
    for size in (10, 7, 2, 1):
        loss_fn(*batch(size))
    program = loss_fn.program
    loss_fn(*batch(3))
    assert loss_fn.program is program


def test_a_replaced_layer_is_noticed():
    model, (x, y) = mlp(), batch()
    loss_fn = MixedLoss(model, EPS, subset=None)
    loss_fn(x, y)
    model[3] = nn.Linear(9, 4)
    bound = loss_fn(x, y, return_parts=True).bound_loss
    torch.testing.assert_close(bound, F.cross_entropy(worst_logits(model, x, y), y).detach())


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.scale, self.signs = mlp(), 1.0, [1.0, -1.0]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x) * self.scale * self.signs[0]


@pytest.mark.parametrize("backend", [None, "eager"])
def test_a_changed_number_of_the_model_is_noticed(backend):
    x, y = batch()
    model = Scaled()
    loss_fn = MixedLoss(model, EPS, subset=None, alpha=1.0)
    step = compile_step(model, torch.optim.SGD(model.parameters(), 1e-3), loss_fn, backend=backend)
    for change in ({}, {"scale": 5.0}, {"scale": -2.0}, {"signs": [-1.0]}, {"scale": 1.0}):
        vars(model).update(change)
        fresh = MixedLoss(model, EPS, subset=None, alpha=1.0)(x, y, return_parts=True)
        torch.testing.assert_close(loss_fn(x, y).detach(), fresh.loss.detach())
        torch.testing.assert_close(step(x, y)["bound_loss"], fresh.bound_loss)
    assert len(loss_fn._cache._programs) == 5


def change_often(model: Scaled, call: Callable[[], object]) -> None:
    for index in range(17):
        model.scale = float(index)
        call()


def test_a_number_that_changes_all_the_time_is_named():
    x, y = batch()
    model = Scaled()
    loss_fn = MixedLoss(model, EPS, subset=None)
    with pytest.warns(UserWarning, match=r"compiled 16 times.*\(scale\)"):
        change_often(model, lambda: loss_fn(x, y))
    assert len(loss_fn._cache._programs) == 1


def test_alpha_and_eps_change_in_place():
    loss_fn = MixedLoss(mlp(), EPS, alpha=0.0)
    pointers = (loss_fn.eps.data_ptr(), loss_fn.alpha.data_ptr())
    loss_fn.set(eps=0.2, alpha=0.9)
    assert (loss_fn.eps.data_ptr(), loss_fn.alpha.data_ptr()) == pointers
    assert float(loss_fn.eps) == pytest.approx(0.2) and float(loss_fn.alpha) == pytest.approx(0.9)


def test_eps_zero_bounds_the_clean_logits():
    model, (x, y) = mlp(), batch()
    parts = MixedLoss(model, 0.0, subset=None)(x, y, return_parts=True)
    torch.testing.assert_close(parts.bound_loss, parts.clean_loss)
    assert parts.certified_accuracy == parts.clean_accuracy


def test_train_eps_is_a_factor_on_the_radius():
    model, (x, y) = mlp(), batch()
    wide = MixedLoss(model, EPS, subset=None, train_eps=2.0)(x, y)
    torch.testing.assert_close(wide, MixedLoss(model, 2 * EPS, subset=None)(x, y))


def test_batchnorm_in_training_mode_uses_the_clean_batch_and_moves_statistics_once():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4))
    plain = copy.deepcopy(net)
    x, y = batch()
    parts = MixedLoss(net, 0.0, subset=None)(x, y, return_parts=True)
    plain(x)
    torch.testing.assert_close(parts.bound_loss, parts.clean_loss)
    for mine, expected in zip(net.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(mine, expected)


def test_switching_to_evaluation_mode_selects_another_program():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4))
    loss_fn = MixedLoss(net, 0.0, subset=None)
    x, y = batch()
    loss_fn(x, y)
    assert loss_fn.program.needs_clean
    net.eval()
    parts = loss_fn(x, y, return_parts=True)
    assert not loss_fn.program.needs_clean
    torch.testing.assert_close(parts.bound_loss, parts.clean_loss)


def test_the_loss_does_not_touch_the_models_mode_or_state():
    model, (x, y) = mlp(), batch()
    model.train()
    before = copy.deepcopy(model.state_dict())
    loss_fn = MixedLoss(model, EPS)
    loss_fn.prepare(x, y)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert not [k for k in loss_fn.state_dict() if not k.startswith("model.")]


def test_training_state_resumes_draws_alpha_and_controller():
    options = {"subset": 3, "seed": 5, "controller": "accuracy-floor", "alpha": 0.5}
    first, second = MixedLoss(mlp(), EPS, **options), MixedLoss(mlp(), 0.0, **options)
    first.draw(10)
    first.end_epoch({"clean_accuracy": 1.0})
    second.load_training_state(first.training_state())
    assert float(second.alpha) == float(first.alpha) > 0.5
    assert float(second.eps) == float(first.eps)
    assert torch.equal(first.draw(10), second.draw(10))
    assert first.end_epoch({"clean_accuracy": 1.0}) == second.end_epoch({"clean_accuracy": 1.0})


def test_gradient_norms_leave_alpha_and_gradients_alone():
    model, (x, y) = mlp(), batch()
    loss_fn = MixedLoss(model, EPS, alpha=0.25)
    norms = gradient_norms(loss_fn, x, y)
    F.cross_entropy(model(x), y).backward()
    clean = torch.stack([p.grad.norm() for p in model.parameters()]).norm()
    assert norms["clean_grad_norm"] == pytest.approx(float(clean), rel=1e-4)
    assert norms["bound_grad_norm"] > 0 and float(loss_fn.alpha) == 0.25


@pytest.mark.parametrize(
    ("error", "match", "change"),
    [
        (SpecError, "out of range: 4", lambda x, y: (x, y.clone().fill_(4))),
        (SpecError, "smallest is -1", lambda x, y: (x, y - y.min() - 1)),
        (SpecError, "int64", lambda x, y: (x, y.float())),
        (SpecError, "shape", lambda x, y: (x, y[:3])),
        (NonFiniteError, "60 NaN", lambda x, y: (x * math.nan, y)),
        (DataError, "outside clip", lambda x, y: (x * 9, y)),
        (DataError, "dtype", lambda x, y: ((x * 255).byte(), y)),
        (DataError, "empty", lambda x, y: (x[:0], y[:0])),
    ],
)
def test_bad_batches_are_refused(error, match, change):
    with pytest.raises(error, match=match):
        MixedLoss(mlp(), EPS)(*change(*batch()))


@pytest.mark.parametrize(
    "options",
    [
        {"eps": -0.1},
        {"eps": math.nan},
        {"alpha": 1.2},
        {"subset": 0},
        {"method": "guess"},
        {"clip": (1.0, 0.0)},
        {"train_eps": 0.0},
        {"controller": "paper"},
    ],
)
def test_bad_options_are_refused(options):
    with pytest.raises(ConfigError):
        MixedLoss(mlp(), **{"eps": EPS, **options})
    with pytest.raises(ConfigError):
        MixedLoss(mlp(), EPS).set(eps=-1.0)


def test_a_model_without_logits_is_refused():
    with pytest.raises(SpecError, match="batch, classes"):
        MixedLoss(nn.Sequential(nn.Linear(6, 4), nn.Unflatten(1, (2, 2))), EPS)(*batch())


def test_a_non_finite_weight_is_named():
    model = mlp()
    with torch.no_grad():
        model[1].weight[0, 0] = math.inf
    with pytest.raises(NonFiniteError, match=r"1\.weight"):
        MixedLoss(model, EPS)(*batch())


def test_compiling_it_without_prepare_says_what_to_do():
    loss_fn = MixedLoss(mlp(), EPS)
    with pytest.raises(ConfigError, match="prepare"):
        _ = loss_fn.program


def test_pgd_stays_in_the_region_and_raises_the_loss():
    model, (x, y) = mlp(), batch()
    model.train()
    moved = AdversarialLoss(model, EPS, steps=7, seed=0).perturb(x, y)
    assert (moved - x).abs().max() <= EPS + 1e-6
    assert moved.min() >= 0 and moved.max() <= 1
    assert F.cross_entropy(model(moved), y) > F.cross_entropy(model(x), y)
    assert all(module.training for module in model.modules())
    assert all(p.grad is None for p in model.parameters())


def test_ibp_initialisation_keeps_interval_widths_level():
    layers = [nn.Sequential(nn.Linear(400, 400), nn.ReLU()) for _ in range(6)]
    model = nn.Sequential(*layers)
    assert initialize_for_ibp(model, torch.Generator().manual_seed(0)) == 6
    center, radius, widths = torch.rand(64, 400), torch.full((64, 400), 0.1), []
    for layer in layers:
        center, radius = layer[0](center), F.linear(radius, layer[0].weight.abs())
        lower, upper = F.relu(center - radius), F.relu(center + radius)
        center, radius = (lower + upper) / 2, (upper - lower) / 2
        widths.append(float(radius.detach().mean()))
    assert all(0.7 < b / a < 1.3 for a, b in itertools.pairwise(widths))
    with pytest.raises(ConfigError):
        initialize_for_ibp(nn.ReLU())


def test_hidden_bias_is_not_the_classifier_s():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 4), nn.Linear(4, 3))
    initialize_for_ibp(model, torch.Generator().manual_seed(0), hidden_bias=0.1)
    assert [sorted(set(model[i].bias.tolist())) for i in (0, 3)] == [[0.0], [0.0]]
    assert torch.equal(model[2].bias.detach(), torch.full((4,), 0.1))


def test_weight_average_follows_swaps_and_resumes():
    model = mlp()
    average = WeightAverage(model, decay=0.75)
    start = model[1].weight.detach().clone()
    with torch.no_grad():
        model[1].weight.add_(1.0)
    average.update()
    other = WeightAverage(model, decay=0.5)
    other.load_state_dict(average.state_dict())
    for mean in (average, other):
        mean.swap()
        torch.testing.assert_close(model[1].weight, start + 0.25)
        mean.swap()
        torch.testing.assert_close(model[1].weight, start + 1.0)


@pytest.mark.parametrize("name", sorted(RECIPES))
@pytest.mark.parametrize("preset", [None, *PRESETS])
def test_recipes_are_complete_and_survive_plain_data(name, preset):
    recipe = get_recipe(name, preset, epochs=3)
    assert recipe.epochs == 3 and recipe_from_dict(recipe.to_dict()) == recipe
    model = mlp()
    recipe.initialize(model)
    loss_fn, optimizer = recipe.make_loss(model, EPS, seed=0), recipe.make_optimizer(model)
    recipe.apply(loss_fn, optimizer, target_eps=EPS, step=99, total=100)
    assert float(loss_fn.eps) == pytest.approx(EPS)
    loss_fn(*batch()).backward()
    optimizer.step()


def test_recipes_refuse_what_cannot_be():
    for changes in ({"epochs": 0}, {"speed": 1}, {"lr": 0.1}, {"ema": 1.0}, {"init": "zeros"}):
        with pytest.raises(ConfigError):
            get_recipe("mixtrain", **changes)
    with pytest.raises(ConfigError, match="preset"):
        get_recipe("mixtrain", "imagenet")


def test_the_clean_loss_is_plain_cross_entropy():
    model, (x, y) = mlp(), batch()
    torch.testing.assert_close(TrainingLoss(model)(x, y), F.cross_entropy(model(x), y))


def _normalizing(affine: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 8), nn.BatchNorm1d(8, affine=affine), nn.ReLU(), nn.Linear(8, 4)
    )


def test_one_clean_pass_serves_the_clean_loss_and_the_statistics():
    """The same losses, gradients and running statistics as with a pass of the model's own."""
    x, y = batch()
    outcomes = []
    for hooked in (False, True):
        net = _normalizing()
        passes = []
        if hooked:
            # A hook must run, so the model itself is called.
            net[0].register_forward_hook(lambda *_, passes=passes: passes.append(1))
        loss_fn = MixedLoss(net, EPS, subset=3, alpha=0.5)
        parts = loss_fn(x, y, return_parts=True, index=torch.arange(3))
        parts.loss.backward()
        assert bool(passes) == hooked
        assert (loss_fn._cache.normalizations is None) == hooked
        outcomes.append(
            (
                parts.clean_loss,
                parts.bound_loss,
                *(p.grad for p in net.parameters()),
                *net.buffers(),
            )
        )
    for shared, separate in zip(*outcomes, strict=True):
        torch.testing.assert_close(shared, separate)


@pytest.mark.parametrize("change", ["affine", "buffer"])
def test_models_that_do_more_than_normalise_keep_their_own_pass(change):
    net = _normalizing(affine=change != "affine")
    if change == "buffer":
        net.register_buffer("counter", torch.zeros(()))
    loss_fn = MixedLoss(net, EPS)
    x, y = batch()
    loss_fn(x, y)
    assert loss_fn._cache.normalizations is None
    assert int(net[1].num_batches_tracked) == 1


def test_the_compiled_clean_loss_is_the_same():
    """It is written out for compilers; wrong logits must not hide in the difference."""
    torch.manual_seed(0)
    logits = torch.randn(7, 5, dtype=torch.float64) * 30
    labels = torch.randint(0, 5, (7,))
    compiled = torch.compile(clean_losses, backend="eager", fullgraph=True)
    grads = []
    for loss in (clean_losses, compiled):
        leaf = logits.clone().requires_grad_()
        values = loss(leaf, labels)
        torch.testing.assert_close(values, F.cross_entropy(logits, labels, reduction="none"))
        grads.append(torch.autograd.grad((values * torch.arange(7)).sum(), leaf)[0])
    torch.testing.assert_close(*grads)
