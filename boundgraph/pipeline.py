"""From options to passes: what a bound method is made of."""

from __future__ import annotations

from boundgraph.domains.specs import CrossEntropy, LinearSpec, Margin, OtherMargins
from boundgraph.ir.program import Program
from boundgraph.options import CompileOptions
from boundgraph.passes import (
    AbsorbBias,
    AttachLinear,
    AttachMargin,
    AttachOthers,
    AttachTracks,
    BoundedCommonSubexpressions,
    BoundedDeadCode,
    CleanStatistics,
    CommonSubexpressions,
    DeadCode,
    DecomposeExtremes,
    FoldAffine,
    FoldBatchNorm,
    FoldSpec,
    FuseAttention,
    FuseGates,
    GuardDomains,
    IntervalKernel,
    IntervalSteps,
    MarginProduct,
    PairProducts,
    Pass,
    RelaxBackward,
    RelaxCheaper,
    RelaxIBP,
    RelaxPlanned,
    RelaxSymbolic,
    ReluRows,
    ReluSteps,
    SplitBatch,
    symbolic_backward,
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
    # Symbols of weights and of values are kept apart, where rounding lets them be carried at all.
    if options.sound or options.method != "symbolic":
        steps.append(FuseAttention())
    steps.append(FuseGates(bounded))
    # Before a specification adds the labels, which have no clean copy.
    if options.training:
        copies = CleanStatistics(keep=options.keep_clean, always=options.masked)
        steps += [copies, AbsorbBias()]
    normalizes = any(node.op == "batch_norm_train" for node in program.nodes)
    others = options.training and options.keep_clean and (normalizes or options.masked)
    if isinstance(options.spec, Margin):
        steps.append(AttachMargin(options.spec.classes, others=others))
        if isinstance(options.spec, OtherMargins):
            steps.append(AttachOthers())
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
    merges: list[Pass] = []
    if not options.sound:
        # On a GPU a layer shares its product with the clean batch (training/_shared_products.py).
        shares = options.training and options.tune_for == "cuda"
        merges = [FoldBatchNorm(statistics=not shares), FoldAffine()]
    executed = options.target == "executed"
    # The network computes its logits one by one, before anything subtracts them.
    steps += [*merges, *([] if executed else [FoldSpec()]), DeadCode()]
    steps += _relaxation(bounded, options)
    if options.tune_for == "cuda" and not options.sound:
        # A training step shares the centre's product with the clean batch instead.
        if not options.training:
            steps += [IntervalKernel(), PairProducts()]
        if options.lower_only:
            steps += [MarginProduct(), ReluRows()]
    elif options.training and options.lower_only and not options.sound:
        steps += [ReluSteps(), IntervalSteps()]
    if options.sound:
        steps.append(GuardDomains())
    return (*steps, BoundedCommonSubexpressions(), BoundedDeadCode())


def _relaxation(bounded: tuple[str, ...], options: CompileOptions) -> list[Pass]:
    """From the concrete program to the bounded one."""
    machine = options.tune_for if options.tune_for in MACHINES else "cpu"
    sound, lower_only, norms = options.sound, options.lower_only, options.norms
    if options.method == "ibp":
        executed, accurate = options.target == "executed", options.accumulate == "float64"
        return [RelaxIBP(bounded, sound=sound, executed=executed, norms=norms, accurate=accurate)]
    if options.method == "auto":
        return [
            RelaxPlanned(
                bounded,
                options.batch,
                options.max_time or DEFAULT_SECONDS,
                options.max_memory or DEFAULT_BYTES,
                machine,
                lower_only=lower_only,
                sound=sound,
                norms=norms,
            )
        ]
    if "crown" in options.method:
        return [
            RelaxBackward(
                bounded,
                intermediate=options.method != "crown-ibp",
                learn=options.method == "alpha-crown",
                lower_only=lower_only,
                sound=sound,
                norms=norms,
                linear=options.linear,
                forward=(1,) if options.tracks else (),
            )
        ]
    only_forward = options.method == "mix" or options.keep_symbolic or sound
    if only_forward or options.schedule in ("forward", "windows"):
        mix, keep = options.method == "mix", options.keep_symbolic
        windows = options.schedule == "windows"
        return [RelaxSymbolic(bounded, mix, keep, norms, sound, windows)]
    if options.schedule == "backward":
        return [DecomposeExtremes(), symbolic_backward(bounded, lower_only, norms)]
    return [RelaxCheaper(bounded, options.batch, machine, lower_only=lower_only, norms=norms)]
