"""LSTM, GRU and RNN layers and cells, unrolled into linear layers and gates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from boundgraph.ir.program import Value
from boundgraph.ops._spec import Lowering, lowers
from boundgraph.ops.blend import blend
from boundgraph.ops.views import reshape_to

aten = torch.ops.aten
# None is a state of zeros, which costs no product.
State = tuple[Value | None, ...]
# One step: from what the input contributes, and the state, to the next state.
Step = Callable[[Lowering, Value, State, "_Weights"], State]


class _Weights:
    """Parameters of one layer in one direction."""

    def __init__(self, params: Sequence[Value], biases: bool) -> None:
        self.input, self.hidden = params[:2]
        self.input_bias: Value | None = params[2] if biases else None
        self.hidden_bias: Value | None = params[3] if biases else None
        rest = params[4:] if biases else params[2:]
        self.projection = rest[0] if rest else None


def _linear(b: Lowering, x: Value, weight: Value, bias: Value | None) -> Value:
    return b.emit("linear", x, weight, *(() if bias is None else (bias,)))


def _add(b: Lowering, left: Value, right: Value) -> Value:
    return b.emit("add", *b.broadcast(left, right))


def _mul(b: Lowering, left: Value, right: Value) -> Value:
    return b.emit("mul", *b.broadcast(left, right))


def _past(b: Lowering, given: Value, hidden: Value | None, weights: _Weights) -> Value:
    """What input and state contribute together."""
    if hidden is not None:
        return _add(b, given, _linear(b, hidden, weights.hidden, weights.hidden_bias))
    return given if weights.hidden_bias is None else _add(b, given, weights.hidden_bias)


def _gates(b: Lowering, x: Value, count: int) -> list[Value]:
    dim = len(b.shape(x)) - 1
    width = b.shape(x)[dim] // count  # type: ignore[operator]
    return [
        b.emit("slice", x, dim=dim, start=i * width, stop=(i + 1) * width, step=1)
        for i in range(count)
    ]


def _lstm_step(b: Lowering, given: Value, state: State, weights: _Weights) -> State:
    hidden, cell = state
    enter, forget, value, leave = _gates(b, _past(b, given, hidden, weights), 4)
    taken = _mul(b, b.emit("sigmoid", enter), b.emit("tanh", value))
    cell = taken if cell is None else _add(b, _mul(b, b.emit("sigmoid", forget), cell), taken)
    hidden = _mul(b, b.emit("sigmoid", leave), b.emit("tanh", cell))
    if weights.projection is not None:
        hidden = _linear(b, hidden, weights.projection, None)
    return hidden, cell


def _gru_step(b: Lowering, given: Value, state: State, weights: _Weights) -> State:
    """h' = n + z·(h − n), with n = tanh(W_n x + r·(U_n h))."""
    (hidden,) = state
    own = _gates(b, given, 3)
    if hidden is None:
        return (_gru_start(b, own, weights),)
    past = _gates(b, _linear(b, hidden, weights.hidden, weights.hidden_bias), 3)
    reset = b.emit("sigmoid", _add(b, own[0], past[0]))
    update = b.emit("sigmoid", _add(b, own[1], past[1]))
    new = b.emit("tanh", _add(b, own[2], _mul(b, reset, past[2])))
    return (blend(b, new, hidden, update),)


def _gru_start(b: Lowering, own: list[Value], weights: _Weights) -> Value:
    """(1 − z)·n for a state of zeros; 1 − σ(x) is σ(−x)."""
    reset, update, new = own
    if weights.hidden_bias is not None:
        to_reset, to_update, to_new = _gates(b, weights.hidden_bias, 3)
        reset, update = _add(b, reset, to_reset), _add(b, update, to_update)
        new = _add(b, new, _mul(b, b.emit("sigmoid", reset), to_new))
    return _mul(b, b.emit("sigmoid", b.emit("neg", update)), b.emit("tanh", new))


def _plain_step(activation: str) -> Step:
    def step(b: Lowering, given: Value, state: State, weights: _Weights) -> State:
        return (b.emit(activation, _past(b, given, state[0], weights)),)

    return step


def _direction(
    b: Lowering, x: Value, state: State, weights: _Weights, step: Step, *, backwards: bool
) -> tuple[list[Value], State]:
    """One layer in one direction over `[time, batch, features]`; outputs in order of time."""
    given = _linear(b, x, weights.input, weights.input_bias)
    length = b.shape(x)[0]
    assert isinstance(length, int)
    outputs: list[Value] = []
    for time in reversed(range(length)) if backwards else range(length):
        state = step(b, b.emit("select", given, dim=0, index=time), state, weights)
        assert state[0] is not None
        outputs.append(state[0])
    return outputs[::-1] if backwards else outputs, state


def _or_zero(b: Lowering, states: Sequence[Value]) -> State:
    """None in the place of states that are zeros, as they are where the user gives none."""
    return tuple(None if b.is_zero(state) else state for state in states)


def _layers(
    b: Lowering,
    input: Value,
    states: State,
    params: Sequence[Value],
    step: Step,
    options: tuple[bool, int, float, bool, bool, bool],
) -> tuple[Value, ...]:
    """All layers; the output and the last states, stacked as torch stacks them."""
    biases, layers, dropout, train, bidirectional, batch_first = options
    if train and dropout:
        return b.reject(
            "dropout between recurrent layers draws random numbers", help="call model.eval()"
        )
    unbatched = len(b.shape(input)) == 2
    batch_dim = 0 if batch_first and not unbatched else 1
    if unbatched:
        input = reshape_to(b, input, (b.shape(input)[0], 1, b.shape(input)[1]))
        states = tuple(
            None if s is None else reshape_to(b, s, (b.shape(s)[0], 1, b.shape(s)[1]))
            for s in states
        )
    x = b.emit("permute", input, dims=(1, 0, 2)) if batch_dim == 0 else input
    if not isinstance(b.shape(x)[0], int):
        return b.reject(
            "the sequence length is dynamic, so the layer cannot be unrolled",
            help="check batch_first, or pass dynamic_batch=False",
        )
    directions = 2 if bidirectional else 1
    each = len(params) // (layers * directions)
    lasts: list[list[Any]] = [[] for _ in states]
    for layer in range(layers):
        sides = []
        for side in range(directions):
            at = layer * directions + side
            weights = _Weights(params[at * each : (at + 1) * each], biases)
            start = tuple(
                None if s is None else b.emit("select", s, dim=0, index=at) for s in states
            )
            outputs, last = _direction(b, x, start, weights, step, backwards=side == 1)
            sides.append(b.emit("stack", *outputs, dim=0))
            for kept, value in zip(lasts, last, strict=True):
                kept.append(value)
        x = b.emit("cat", *sides, dim=2) if directions == 2 else sides[0]
    result = b.emit("permute", x, dims=(1, 0, 2)) if batch_dim == 0 else x
    ends = [b.emit("stack", *kept, dim=0) for kept in lasts]
    if unbatched:
        result = reshape_to(b, result, (b.shape(result)[0], b.shape(result)[2]))
        ends = [reshape_to(b, e, (b.shape(e)[0], b.shape(e)[2])) for e in ends]
    return (result, *ends)


@lowers(torch.lstm, aten.lstm.input)
def _(b: Lowering, input: Value, hx: Any, params: Any, *options: Any) -> Any:
    if isinstance(params, bool) or not isinstance(params, list | tuple):
        return b.reject("packed sequences have no bound rule", help="pass a padded tensor")
    return _layers(b, input, _or_zero(b, hx), list(params), _lstm_step, options)  # type: ignore[arg-type]


def _lower_layers(step: Step) -> Any:
    def lower(b: Lowering, input: Value, hx: Any, params: Any, *options: Any) -> Any:
        if not isinstance(params, list | tuple):
            return b.reject("packed sequences have no bound rule", help="pass a padded tensor")
        return _layers(b, input, _or_zero(b, (hx,)), list(params), step, options)  # type: ignore[arg-type]

    return lower


lowers(torch.gru, aten.gru.input)(_lower_layers(_gru_step))
lowers(torch.rnn_tanh, aten.rnn_tanh.input)(_lower_layers(_plain_step("tanh")))
lowers(torch.rnn_relu, aten.rnn_relu.input)(_lower_layers(_plain_step("relu")))


def _cell(step: Step) -> Any:
    def lower(
        b: Lowering,
        input: Value,
        hx: Any,
        w_ih: Value,
        w_hh: Value,
        b_ih: Value | None = None,
        b_hh: Value | None = None,
    ) -> Any:
        weights = _Weights((w_ih, w_hh, *(() if b_ih is None else (b_ih, b_hh))), b_ih is not None)
        state = _or_zero(b, hx if isinstance(hx, list | tuple) else (hx,))
        result = step(b, _linear(b, input, w_ih, b_ih), state, weights)
        return result if len(result) > 1 else result[0]

    return lower


lowers(torch.lstm_cell, aten.lstm_cell.default)(_cell(_lstm_step))
lowers(torch.gru_cell, aten.gru_cell.default)(_cell(_gru_step))
lowers(torch.rnn_tanh_cell, aten.rnn_tanh_cell.default)(_cell(_plain_step("tanh")))
lowers(torch.rnn_relu_cell, aten.rnn_relu_cell.default)(_cell(_plain_step("relu")))
