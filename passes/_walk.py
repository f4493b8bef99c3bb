"""One walk of a backward relaxation: from a value back to the regions."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from boundgraph import ops
from boundgraph.ir.program import Node, Value
from boundgraph.ir.types import Dim, FormType, Shape, plain
from boundgraph.ops import OpSpec
from boundgraph.ops._sound_terms import backward_attributes, precision_of
from boundgraph.passes._unsupported import mixes_samples

if TYPE_CHECKING:
    from boundgraph.passes.relax_backward import Run

SLOPE = "slope_"


class Walk:
    """One walk from a value back to the regions."""

    def __init__(self, run: Run, value: Value, signed: bool) -> None:
        self.run = run
        self.name = value.name
        self.signed = signed
        self.forms: dict[str, list[Value]] = {}
        self._signed_forms: set[str] = set()
        self._boxed: list[tuple[Value, str]] = []
        self.shared = self._can_share(value)
        key, type_ = str(value), value.type
        shape = self._shape(key, shared=self.shared)
        sizes = [entry for dim, entry in enumerate(type_.shape) if dim != run.batch[key]]
        if not all(isinstance(entry, int) for entry in sizes):
            run.problems.append(mixes_samples(run.nodes[key]))
        attrs: dict[str, Any] = {"shape": shape, "batch_dim": run.batch[key]}
        known = run.interval.values()
        same = (interval for interval in known if interval.type.dtype == type_.dtype)
        like = next(same, None) or next(iter(known))
        rows = math.prod(entry for entry in sizes if isinstance(entry, int))
        if run.options.sound:
            attrs["precision"] = precision_of(type_.dtype)
            # Rows start at the centre of what they bound.
            like = run.interval[key]
        seed = run.builder.add(
            f"{run.prefix}seed",
            (like,),
            FormType(type_.dtype, (rows, *shape)),
            attrs,
            name=f"{value.name}_rows",
        )
        self.forms[key] = [seed]

    def step(self, node: Node) -> None:
        """Carry the form of a node's result to its operands, or stop at its interval."""
        run, key = self.run, str(node.result)
        form = self._merge(self.forms.pop(key), node.result)
        spec = ops.get(node.op)
        assert spec is not None
        if not run.walks(node, spec):
            self._boxed.append((self._with_sign(form), key))
            return
        bounded = run.bounded(node)
        relaxed = run.relaxes(node, spec)
        if relaxed:
            form = self._with_sign(form)
        context = [
            run.interval_or_plain(value)
            for i, value in enumerate(node.inputs)
            if relaxed or i not in bounded
        ]
        if run.options.learn and spec.learnable:
            slope = f"{SLOPE}{self.name}_{node.result.name}".replace(".", "_")
            shape_of = plain(node.inputs[bounded[0]].type)
            context.append(run.builder.input(slope, shape_of))
        shared = self._is_shared(form, key) and not relaxed
        shared = shared and not any(_dynamic(value.type.shape) for value in context)
        attrs = dict(node.attrs) | {
            "shapes": tuple(
                self._shape(str(value), shared=shared) if i in bounded else value.type.shape
                for i, value in enumerate(node.inputs)
            ),
            "target": self._shape(key, shared=self._is_shared(form, key)),
            "sample_dims": run.sample_dims(key),
        }
        if run.options.parallel and relaxed:
            attrs["parallel"] = True
        if node.op in ("cat", "stack"):
            attrs["plain"] = tuple(i for i in range(len(node.inputs)) if i not in bounded)
        if run.options.sound:
            if not relaxed:
                context += [run.interval[str(node.inputs[i])] for i in bounded]
            context.append(run.interval[key])
            attrs["shared"] = self._is_shared(form, key)
        for position, i in enumerate(bounded):
            operand = node.inputs[i]
            if run.options.sound:
                attrs |= self._rounding(node, spec, bounded, operand)
            shape = self._shape(str(operand), shared=shared)
            new = run.builder.add(
                run.prefix + node.op,
                (form, *context),
                FormType(operand.type.dtype, (form.type.shape[0], *shape)),
                attrs | {"operand": i, "carry": position == 0},
                name=f"{operand.name}_form",
                span=node.span,
            )
            if form.name in self._signed_forms:
                self._signed_forms.add(new.name)
            self.forms.setdefault(str(operand), []).append(new)

    def _rounding(
        self, node: Node, spec: OpSpec, bounded: list[int], operand: Value
    ) -> dict[str, Any]:
        """What a rule that accounts for rounding is told of a step to an operand."""
        run = self.run
        return backward_attributes(
            spec,
            node.inputs,
            bounded,
            node,
            run.batch[str(node.result)],
            direct=run.direct(node),
            operand_dims=run.sample_dims(str(operand)),
        )

    def ends(self) -> list[tuple[Value, str]]:
        """Forms over regions and over the intervals where the walk stopped."""
        for key, parts in self.forms.items():
            form = self._with_sign(self._merge(parts, self.run.value(key)))
            self._boxed.append((form, key))
        self.forms = {}
        return self._boxed

    def _merge(self, parts: list[Value], value: Value) -> Value:
        if len(parts) == 1:
            return parts[0]
        if any(part.name in self._signed_forms for part in parts):
            parts = [self._with_sign(part) for part in parts]
        # A form that is shared by the samples broadcasts against one that is not.
        widest = next((p for p in parts if _dynamic(p.type.shape)), parts[0])
        run, operands, attrs = self.run, list(parts), {}
        if run.options.sound:
            key = str(value)
            operands.append(run.interval[key])
            attrs = {
                "dims": run.sample_dims(key),
                "elements": run.elements(key),
                "shared": all(self._is_shared(part, key) for part in parts),
                "precision": precision_of(value.type.dtype),
            }
        merged = run.builder.add(
            f"{run.prefix}merge", operands, widest.type, attrs, name=f"{value.name}_form"
        )
        if parts[0].name in self._signed_forms:
            self._signed_forms.add(merged.name)
        return merged

    def _with_sign(self, form: Value) -> Value:
        """Append the negated rows, once."""
        if not self.signed or form.name in self._signed_forms:
            return form
        rows, *shape = form.type.shape
        dtype, sound = form.type.dtype, self.run.options.sound
        signed = self.run.builder.add(
            f"{self.run.prefix}sign",
            (form,),
            FormType(dtype, (rows * 2, *shape)),
            {"precision": precision_of(dtype)} if sound else {},
            name=f"{form.name}_signed",
        )
        self._signed_forms.add(signed.name)
        return signed

    def _can_share(self, value: Value) -> bool:
        """Every value on the way has one dynamic size, its batch dimension itself."""
        run = self.run
        keys = [str(node.result) for node in run.ancestors(value)]
        return all(
            _unit_batch(run.value(key).type.shape, run.batch[key])
            for key in (*keys, *(k for k in run.interval if k not in run.nodes))
            if key in run.interval
        )

    def _shape(self, key: str, *, shared: bool) -> Shape:
        shape, batch = self.run.value(key).type.shape, self.run.batch.get(key)
        if not shared or batch is None:
            return shape
        return (*shape[:batch], 1, *shape[batch + 1 :])

    def _is_shared(self, form: Value, key: str) -> bool:
        return self.shared and not _dynamic(form.type.shape)


def _dynamic(shape: Shape) -> bool:
    return any(isinstance(entry, Dim) for entry in shape)


def _unit_batch(shape: Shape, batch: int | None) -> bool:
    dynamic = [dim for dim, entry in enumerate(shape) if isinstance(entry, Dim)]
    if batch is None or dynamic != [batch]:
        return False
    entry = shape[batch]
    return isinstance(entry, Dim) and (entry.coeff, entry.offset) == (1, 0)
