"""One portion of rows of a backward walk over whole values."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from boundgraph.domains.linear_form import LinearForm, Lines, one_hot_rows, spread_rows
from boundgraph.ir.program import Node, Value
from boundgraph.ir.types import Dim, FormType
from boundgraph.ops import bounded, get
from boundgraph.ops.bounded import BACKWARD, least
from boundgraph.runtime.interpret import DimSizes
from boundgraph.runtime.shared_lines import SharedLines
from boundgraph.runtime.slices import tensor_of
from boundgraph.runtime.slopes import FreeLines, Slopes, free_lines
from boundgraph.runtime.transposed import conv2d_backward
from boundgraph.runtime.walks import Walk, is_shared

_QUICK = {f"{BACKWARD}conv2d": conv2d_backward}


class Portion:
    """One portion of rows on its way back.

    Until forms differ between samples, one row stands for all of them. Units that differ
    between samples are therefore walked as one set and dealt out to the samples only there.
    """

    def __init__(
        self,
        walk: Walk,
        units: Tensor,
        values: dict[str, Any],
        sizes: DimSizes,
        *,
        batch: int,
        dynamic: bool,
        lines: SharedLines | None = None,
    ) -> None:
        self.lines = lines
        self.walk, self.values, self.sizes = walk, values, sizes
        self.batch, self.dynamic = batch, dynamic
        like = tensor_of(values[str(walk.seed.inputs[0])])
        units = units.to(like.device)
        self.like = like
        self.deal: Tensor | None = None
        if units.dim() == 2 and is_shared(walk.seed.result, dynamic=dynamic):
            units, places = torch.unique(units, return_inverse=True)
            self.deal = places.T
        self.units = units
        self.forms: dict[str, LinearForm] = {}
        self.uses: dict[str, int] = {}
        self._lines: dict[str, FreeLines] = {}

    def run(self, slopes: Slopes | None = None) -> Tensor:
        """Walk the rows back to the regions, with free slopes of their own where given."""
        self.forms, self.uses = {}, _uses(self.walk)
        nodes = self._start()
        for node in nodes:
            together = isinstance(node.result.type, FormType) and self._shared(node.result)
            operands = [self._operand(node, value, together) for value in node.inputs]
            if slopes is not None and slopes.takes(node):
                self.forms[str(node.result)] = self._through_free(node, operands[0], slopes)
                continue
            attrs = {k: self.sizes.resolve(v) for k, v in node.attrs.items()}
            known = None if self.lines is None else self.lines.through(node, operands, attrs)
            if known is None:
                rule = _QUICK.get(node.op) or bounded.rule(node.op)
                known = rule(*operands, **attrs)
            self.forms[str(node.result)] = known
        total = self._least()
        total = total.reshape(len(total), -1)
        return total.expand(-1, self.batch) if total.shape[1] == 1 else total

    def _through_free(self, node: Node, form: LinearForm, slopes: Slopes) -> LinearForm:
        """Through a relaxed op whose lower slopes each row has for itself."""
        key = str(node.result)
        if key not in self._lines:
            self._lines[key] = free_lines(node, self.values, self.sizes)
        lines, free = self._lines[key]
        assert free is not None
        lower = slopes.lower(node, free, lines.lower_slope, form.coeff.shape)
        own = Lines(lower, lines.lower_offset, lines.upper_slope, lines.upper_offset, True)
        dims: Any = node.attrs["sample_dims"]
        return form.through(own, dims)

    def _least(self) -> Tensor:
        """Least values of the forms that reached the regions."""
        node = self.walk.assemble
        dims: Any = node.attrs["dims"]
        norms: Any = node.attrs.get("norms", ())
        ends: list[Any] = []
        left = iter(dims)
        for value in node.inputs:
            if isinstance(value.type, FormType):
                ends.append(self._dealt(value, self._take(value), _missing(value, next(left))))
            else:
                ends.append(self.values[str(value)])
        return least(ends, dims, norms, samples=self.walk.batch_dim is not None)

    def _start(self) -> tuple[Node, ...]:
        """Make the first forms; the nodes that are left."""
        walk, key = self.walk, str(self.walk.seed.result)
        first = walk.nodes[0] if walk.nodes else None
        if first is not None and self.uses[key] == 1 and key in map(str, first.inputs):
            made = self._unit_rows(first)
            if made is not None:
                self.forms[str(first.result)] = made
                return walk.nodes[1:]
        attrs = {k: self.sizes.resolve(v) for k, v in walk.seed.attrs.items()}
        self.forms[key] = one_hot_rows(self.like, units=self.units, **attrs)
        return walk.nodes

    def _unit_rows(self, first: Node) -> LinearForm | None:
        """The form behind the first op, where that op can make it without one-hot rows."""
        spec = get(first.op.removeprefix(BACKWARD))
        shared = self._shared(self.walk.seed.result) and self._shared(first.result)
        if spec is None or spec.unit_rows is None or self.units.dim() != 1 or not shared:
            return None
        others = [self.values[str(value)] for value in first.inputs[1:]]
        attrs = {key: self.sizes.resolve(value) for key, value in first.attrs.items()}
        made: LinearForm | None = spec.unit_rows(self.units, *others, **attrs)
        return made

    def _shared(self, value: Value) -> bool:
        return is_shared(value, dynamic=self.dynamic)

    def _take(self, value: Value) -> LinearForm:
        """A form, forgotten at its last use."""
        key = str(value)
        self.uses[key] -= 1
        return self.forms.pop(key) if self.uses[key] == 0 else self.forms[key]

    def _operand(self, node: Node, value: Value, together: bool) -> Any:
        if not isinstance(value.type, FormType):
            return self.values[str(value)]
        form = self._take(value)
        if together:
            return form
        dims: Any = node.attrs.get("sample_dims")
        if dims is not None:
            return self._dealt(value, form, _missing(value, dims))
        varying = [i for i, entry in enumerate(node.result.type.shape) if isinstance(entry, Dim)]
        return self._dealt(value, form, varying[0] if varying else None)

    def _dealt(self, value: Value, form: LinearForm, batch_dim: int | None) -> LinearForm:
        """A form shared by the samples, as each sample's own rows."""
        if self.deal is None or batch_dim is None or not self._shared(value):
            return form
        return spread_rows(form, self.deal, len(self.units), batch_dim)


def _missing(value: Value, dims: tuple[int, ...]) -> int | None:
    """The batch dimension of a coefficient, given those that belong to a sample."""
    left = [dim for dim in range(1, len(value.type.shape)) if dim not in dims]
    return left[0] if left else None


def _uses(walk: Walk) -> dict[str, int]:
    found: dict[str, int] = {}
    for node in (*walk.nodes, walk.assemble):
        for value in node.inputs:
            if isinstance(value.type, FormType):
                found[str(value)] = found.get(str(value), 0) + 1
    return found
