"""From options to passes: what a bound method is made of."""

from __future__ import annotations

from boundgraph.domains.specs import CrossEntropy, LinearSpec, Margin
from boundgraph.ir.program import Program
from boundgraph.options import CompileOptions
from boundgraph.passes import (
    AbsorbBias,
    AttachLinear,
    AttachMargin,
    AttachTracks,
    BoundedCommonSubexpressions,
    BoundedDeadCode,
    CleanStatistics,
    CommonSubexpressions,
    DeadCode,
    FoldAffine,
    FoldBatchNorm,
    FoldSpec,
    MarginProduct,
    PairProducts,
    Pass,
    RelaxBackward,
    RelaxIBP,
    RelaxPlanned,
    RelaxSymbolic,
    ReluRows,
    SplitBatch,
)
from boundgraph.planning import DEFAULT_BYTES, DEFAULT_SECONDS, MACHINES


def pipeline(
    program: Program, bounded: tuple[str, ...], options: CompileOptions
) -> tuple[Pass, ...]:
    """The passes of a method, in order."""
    steps: list[Pass] = [DeadCode(), CommonSubexpressions()]
    # Intervals need no order among samples.
    if options.method != "ibp":
        steps.append(SplitBatch())
    # Before a specification adds the labels, which have no clean copy.
    if options.training:
        steps += [CleanStatistics(keep=options.keep_clean), AbsorbBias()]
    normalizes = any(node.op == "batch_norm_train" for node in program.nodes)
    others = options.training and options.keep_clean and normalizes
    if isinstance(options.spec, Margin):
        steps.append(AttachMargin(options.spec.classes, others=others))
        if options.tracks:
            steps.append(AttachTracks(loss=isinstance(options.spec, CrossEntropy)))
    elif isinstance(options.spec, LinearSpec):
        offset = options.spec.offset
        steps.append(
            AttachLinear(
                tuple(options.spec.matrix.shape), None if offset is None else tuple(offset.shape)
            )
        )
    # Merged weights are rounded, so a sound program keeps the layers apart.
    merges: list[Pass] = [] if options.sound else [FoldBatchNorm(), FoldAffine()]
    executed = options.target == "executed"
    # The network computes its logits one by one, before anything subtracts them.
    steps += [*merges, *([] if executed else [FoldSpec()]), DeadCode()]
    if options.method == "ibp":
        steps.append(RelaxIBP(bounded, sound=options.sound, executed=executed, norms=options.norms))
    elif options.method == "auto":
        steps.append(
            RelaxPlanned(
                bounded,
                options.batch,
                options.max_time or DEFAULT_SECONDS,
                options.max_memory or DEFAULT_BYTES,
                options.tune_for if options.tune_for in MACHINES else "cpu",
                lower_only=options.lower_only,
                sound=options.sound,
                norms=options.norms,
            )
        )
    elif "crown" in options.method:
        steps.append(
            RelaxBackward(
                bounded,
                intermediate=options.method != "crown-ibp",
                learn=options.method == "alpha-crown",
                lower_only=options.lower_only,
                sound=options.sound,
                norms=options.norms,
                linear=options.linear,
                forward=(1,) if options.tracks else (),
            )
        )
    else:
        steps.append(
            RelaxSymbolic(
                bounded,
                mix=options.method == "mix",
                keep=options.keep_symbolic,
                norms=options.norms,
                sound=options.sound,
            )
        )
    if options.tune_for == "cuda" and not options.sound:
        steps.append(PairProducts())
        if options.lower_only:
            steps += [MarginProduct(), ReluRows()]
    return (*steps, BoundedCommonSubexpressions(), BoundedDeadCode())
