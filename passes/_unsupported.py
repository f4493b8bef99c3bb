"""Say why an op cannot be bounded, where it is and what to do."""

from __future__ import annotations

from boundgraph.errors import Diagnostic
from boundgraph.ir.program import Node
from boundgraph.ops import OpSpec


def diagnose(node: Node, spec: OpSpec | None, positions: list[int]) -> Diagnostic:
    """Why `node` cannot take a bound at operand `positions`."""
    if node.op == "unsupported":
        return Diagnostic(node.attrs["message"], node.span, node.attrs.get("help") or None)
    if node.op == "batch_norm_train":
        return Diagnostic(
            "batch normalisation is in training mode: its output depends on the whole batch, "
            "so there is no bound for a single sample",
            node.span,
            "call model.eval() before bounding or certifying; in training, MixedLoss bounds it "
            "with the statistics of the clean batch",
        )
    if node.op == "call":
        return Diagnostic(
            f"no bound rule for `{node.attrs['target']}`",
            node.span,
            "`boundgraph ops` lists what is supported; rewrite this step with those ops, or "
            "bound the model up to it",
        )
    if spec is not None and spec.refusal:
        return Diagnostic(spec.refusal, node.span, spec.way_out or None)
    if spec is not None and spec.interval is not None:
        which = ", ".join(str(node.inputs[position]) for position in positions)
        return Diagnostic(
            f"`{node.op}` has no bound rule where {which} depends on the region",
            node.span,
            "only its first operand may depend on a perturbed input",
        )
    return Diagnostic(f"no bound rule for `{node.op}`", node.span, "`boundgraph ops` lists all")


def mixes_samples(node: Node) -> Diagnostic:
    return Diagnostic(
        f"`{node.op}` combines samples of the batch (or moves the batch dimension in a way "
        "that cannot be followed), and symbolic bounds keep one set of symbols per sample",
        node.span,
        'use method="ibp", or give the region a batch of one with dynamic_batch=False',
    )


def no_elements(node: Node) -> Diagnostic:
    shape = ", ".join(map(str, node.result.type.shape))
    return Diagnostic(
        f"`{node.op}` gives a tensor of shape [{shape}], which has no elements to bound",
        node.span,
        "give the region a larger batch: a slice such as x[1:] leaves nothing of a batch of one",
    )
