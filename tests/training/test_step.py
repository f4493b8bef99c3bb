import copy
import math
import warnings

import pytest
import torch
from torch import nn

from boundgraph.errors import ConfigError, NonFiniteError, SpecError
from boundgraph.training.adversarial import AdversarialLoss
from boundgraph.training.losses import MixedLoss, TrainingLoss
from boundgraph.training.step import StepWarning, compile_step

# Traces and differentiates like Inductor but compiles no kernels, so tests stay fast.
BACKEND = "aot_eager"
needs_grad_tracing = pytest.mark.skipif(
    not hasattr(torch._dynamo.config, "trace_autograd_ops"),
    reason="this torch cannot trace autograd.grad",
)

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "nesterov": lambda p: torch.optim.SGD(
        p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-2
    ),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=1e-2),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "amsgrad": lambda p: torch.optim.AdamW(p, lr=0.01, amsgrad=True, maximize=True),
    "two groups": lambda p: torch.optim.Adam(
        [{"params": p[:2], "lr": 0.02}, {"params": p[2:], "betas": (0.8, 0.9)}]
    ),
}


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


def mlp(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 4))


def batches(sizes: list[int]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (
            torch.rand(size, 6, generator=generator),
            torch.randint(0, 4, (size,), generator=generator),
        )
        for size in sizes
    ]


def train(make_optimizer, backend, sizes=(12, 12, 5, 12, 12, 5), clip_norm=0.3):
    """A short run in which ε, α and the learning rate change at every step."""
    model = mlp()
    optimizer = make_optimizer(list(model.parameters()))
    loss_fn = MixedLoss(model, 0.05, subset=4, seed=3)
    step = compile_step(model, optimizer, loss_fn, clip_norm=clip_norm, backend=backend)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    history = []
    for number, (x, y) in enumerate(batches(list(sizes))):
        loss_fn.set(eps=0.01 * number, alpha=min(1.0, 0.1 * number))
        history.append({k: float(v) for k, v in step(x, y).items()})
        scheduler.step()
    return model, optimizer, step, history


def assert_same_state(found, expected):
    assert found["param_groups"] == expected["param_groups"]
    assert found["state"].keys() == expected["state"].keys()
    for key, parts in expected["state"].items():
        for name, value in parts.items():
            if value is not None:
                torch.testing.assert_close(found["state"][key][name], value)


@needs_grad_tracing
@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_the_whole_step_equals_the_stock_optimizer(name):
    compiled = train(OPTIMIZERS[name], BACKEND)
    stock = train(OPTIMIZERS[name], None)
    assert compiled[2].mode == "whole" and compiled[2].reason is None
    assert stock[2].mode == "eager"
    for mine, expected in zip(compiled[0].parameters(), stock[0].parameters(), strict=True):
        torch.testing.assert_close(mine, expected)
    assert_same_state(compiled[1].state_dict(), stock[1].state_dict())
    for mine, expected in zip(compiled[3], stock[3], strict=True):
        assert mine == pytest.approx(expected, rel=1e-4, abs=1e-6)


@needs_grad_tracing
def test_nothing_recompiles_while_eps_alpha_and_lr_move():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, _, step, _ = train(OPTIMIZERS["adam"], BACKEND, sizes=(12, 12, 12, 12, 12, 7) * 3)
    stats = torch._dynamo.utils.counters["stats"]
    assert stats["unique_graphs"] == 1
    assert not torch._dynamo.utils.counters["graph_break"]
    assert step.odd_batches == 3


@needs_grad_tracing
def test_resuming_from_the_optimizers_own_state_is_exact():
    sizes = [12] * 6
    unbroken = train(OPTIMIZERS["adamw"], BACKEND, sizes=sizes)
    model = mlp()
    optimizer = OPTIMIZERS["adamw"](list(model.parameters()))
    loss_fn = MixedLoss(model, 0.05, subset=4, seed=3)
    saved = None
    for number, (x, y) in enumerate(batches(sizes)):
        if number == 3:
            saved = copy.deepcopy(
                (model.state_dict(), optimizer.state_dict(), loss_fn.training_state())
            )
            model, loss_fn = mlp(9), None
            optimizer = OPTIMIZERS["adamw"](list(model.parameters()))
            loss_fn = MixedLoss(model, 0.3, subset=4, seed=8)
            model.load_state_dict(saved[0])
            optimizer.load_state_dict(saved[1])
            loss_fn.load_training_state(saved[2])
        if number in (0, 3):
            step = compile_step(model, optimizer, loss_fn, clip_norm=0.3, backend=BACKEND)
        optimizer.param_groups[0]["lr"] = 0.01 * 0.9**number
        loss_fn.set(eps=0.01 * number, alpha=0.1 * number)
        step(x, y)
    for mine, expected in zip(model.parameters(), unbroken[0].parameters(), strict=True):
        torch.testing.assert_close(mine, expected, rtol=0, atol=1e-7)


@needs_grad_tracing
def test_loading_state_into_a_running_step_takes_effect():
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    step = compile_step(model, optimizer, MixedLoss(model, 0.05, subset=4), backend=BACKEND)
    (x, y), *_ = batches([12])
    step(x, y)
    early = copy.deepcopy(optimizer.state_dict())
    step(x, y)
    optimizer.load_state_dict(early)
    step(x, y)
    assert {float(s["step"]) for s in optimizer.state.values()} == {2.0}
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_another_optimizer_compiles_the_loss_only_and_says_so():
    model = mlp()
    with pytest.warns(StepWarning, match="RMSprop"):
        step = compile_step(
            model,
            torch.optim.RMSprop(model.parameters()),
            MixedLoss(model, 0.05, subset=4, seed=0),
            backend=BACKEND,
        )
    assert step.mode == "loss" and "RMSprop" in step.reason
    eager_model = mlp()
    eager = compile_step(
        eager_model,
        torch.optim.RMSprop(eager_model.parameters()),
        MixedLoss(eager_model, 0.05, subset=4, seed=0),
        backend=None,
    )
    for x, y in batches([12, 12]):
        found, expected = step(x, y), eager(x, y)
        torch.testing.assert_close(found["loss"], expected["loss"])


def test_a_failing_compiler_falls_back_to_eager_and_says_why():
    def broken(graph, inputs):
        raise RuntimeError("no kernels today")

    model = mlp()
    loss_fn = MixedLoss(model, 0.05, subset=4, seed=0)
    optimizer = torch.optim.Adam(model.parameters())
    (x, y), *_ = batches([12])
    with pytest.warns(StepWarning, match="no kernels today"):  # noqa: PT031
        step = compile_step(model, optimizer, loss_fn, backend=broken)
        metrics = step(x, y)
    assert step.mode == "eager" and "no kernels today" in step.reason
    expected_model = mlp()
    expected = compile_step(
        expected_model,
        torch.optim.Adam(expected_model.parameters()),
        MixedLoss(expected_model, 0.05, subset=4, seed=0),
        backend=None,
    )(x, y)
    torch.testing.assert_close(metrics["loss"], expected["loss"])
    for mine, other in zip(model.parameters(), expected_model.parameters(), strict=True):
        torch.testing.assert_close(mine, other)


@needs_grad_tracing
def test_a_parameter_without_gradient_falls_back_to_the_stock_optimizer():
    model = mlp()
    model.register_parameter("spare", nn.Parameter(torch.ones(2)))
    with pytest.warns(StepWarning):  # noqa: PT031
        step = compile_step(
            model, torch.optim.Adam(model.parameters()), TrainingLoss(model), backend=BACKEND
        )
        step(*batches([12])[0])
    assert step.mode == "loss" and torch.equal(model.spare.detach(), torch.ones(2))


@needs_grad_tracing
def test_batchnorm_and_pgd_steps_compile_whole():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4))
    nets = [net, copy.deepcopy(net)]
    for make in (
        lambda m: MixedLoss(m, 0.05, subset=4, seed=0),
        lambda m: AdversarialLoss(m, 0.05, seed=0),
    ):
        steps = [
            compile_step(m, torch.optim.SGD(m.parameters(), lr=0.1), make(m), backend=b)
            for m, b in zip(nets, (BACKEND, None), strict=True)
        ]
        for x, y in batches([12, 12]):
            for step in steps:
                step(x, y)
        assert steps[0].mode == "whole"
    for mine, expected in zip(
        nets[0].state_dict().values(), nets[1].state_dict().values(), strict=True
    ):
        torch.testing.assert_close(mine, expected)


@pytest.mark.parametrize("backend", [None, pytest.param(BACKEND, marks=needs_grad_tracing)])
def test_a_non_finite_loss_is_raised_and_named(backend):
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters())
    step = compile_step(model, optimizer, MixedLoss(model, 0.05, subset=4), backend=backend)
    (x, y), *_ = batches([12])
    step(x, y)
    with torch.no_grad():
        model[3].weight[0, 0] = math.nan
    kept = model[1].weight.detach().clone()
    with pytest.raises(NonFiniteError, match=r"clean loss.*3\.weight"):
        step(x, y)
    assert torch.equal(model[1].weight, kept)
    step.raise_if_nonfinite()


def test_the_users_own_compile_needs_no_graph_break():
    model = mlp()
    loss_fn = MixedLoss(model, 0.05, subset=4)
    (x, y), (x2, y2) = batches([12, 12])
    index = loss_fn.draw(12)
    expected = loss_fn(x, y, index=index)
    compiled = torch.compile(loss_fn, backend=BACKEND, fullgraph=True)
    torch.testing.assert_close(compiled(x, y, index=index), expected)
    loss_fn.set(eps=0.2, alpha=0.9)
    compiled(x2, y2, index=loss_fn.draw(12)).backward()
    assert model[1].weight.grad is not None
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_bad_arguments_are_refused():
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss_fn = MixedLoss(model, 0.05)
    with pytest.raises(ConfigError, match="clip_norm"):
        compile_step(model, optimizer, loss_fn, clip_norm=0.0)
    with pytest.raises(ConfigError, match="another model"):
        compile_step(mlp(), optimizer, loss_fn)
    with pytest.raises(ConfigError, match="TrainingLoss"):
        compile_step(model, optimizer, nn.CrossEntropyLoss())
    step = compile_step(model, optimizer, loss_fn, backend=None)
    x, y = batches([12])[0]
    with pytest.raises(SpecError, match="out of range"):
        step(x, y + 9)


def _ddp_worker(rank: int, port: int, results) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2
    )
    try:
        model = mlp()
        wrapped = nn.parallel.DistributedDataParallel(model)
        loss_fn = MixedLoss(wrapped, 0.05, subset=None)
        optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", StepWarning)
            step = compile_step(wrapped, optimizer, loss_fn, backend="eager")
        (x, y), *_ = batches([12])
        half = slice(0, 6) if rank == 0 else slice(6, 12)
        step(x[half], y[half])
        results.put((rank, step.mode, [p.detach().numpy() for p in model.parameters()]))
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.skipif(not torch.distributed.is_available(), reason="no torch.distributed")
def test_two_ddp_processes_equal_one_process_on_the_whole_batch():
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = torch.multiprocessing.get_context("spawn")
    results = context.Queue()
    workers = [context.Process(target=_ddp_worker, args=(r, port, results)) for r in range(2)]
    for worker in workers:
        worker.start()
    found = sorted(results.get(timeout=300) for _ in workers)
    for worker in workers:
        worker.join(60)
    model = mlp()
    loss_fn = MixedLoss(model, 0.05, subset=None)
    step = compile_step(model, torch.optim.SGD(model.parameters(), lr=0.1), loss_fn, backend=None)
    step(*batches([12])[0])
    for _, mode, weights in found:
        assert mode == "loss"
        for mine, expected in zip(weights, model.parameters(), strict=True):
            torch.testing.assert_close(torch.from_numpy(mine), expected.detach())
