"""Program transformations, one per class; a method is a tuple of them, in order."""

from boundgraph.passes.absorb_bias import AbsorbBias as AbsorbBias
from boundgraph.passes.attach_spec import AttachLinear as AttachLinear
from boundgraph.passes.attach_spec import AttachMargin as AttachMargin
from boundgraph.passes.attach_spec import AttachTracks as AttachTracks
from boundgraph.passes.clean_statistics import CleanStatistics as CleanStatistics
from boundgraph.passes.cleanup import BoundedCommonSubexpressions as BoundedCommonSubexpressions
from boundgraph.passes.cleanup import BoundedDeadCode as BoundedDeadCode
from boundgraph.passes.cleanup import CommonSubexpressions as CommonSubexpressions
from boundgraph.passes.cleanup import DeadCode as DeadCode
from boundgraph.passes.fold import FoldAffine as FoldAffine
from boundgraph.passes.fold import FoldBatchNorm as FoldBatchNorm
from boundgraph.passes.fold import FoldSpec as FoldSpec
from boundgraph.passes.fuse_launches import MarginProduct as MarginProduct
from boundgraph.passes.fuse_launches import PairProducts as PairProducts
from boundgraph.passes.manager import Effect as Effect
from boundgraph.passes.manager import Pass as Pass
from boundgraph.passes.manager import PassRecord as PassRecord
from boundgraph.passes.manager import run_pipeline as run_pipeline
from boundgraph.passes.relax_backward import RelaxBackward as RelaxBackward
from boundgraph.passes.relax_ibp import RelaxIBP as RelaxIBP
from boundgraph.passes.relax_planned import RelaxPlanned as RelaxPlanned
from boundgraph.passes.relax_symbolic import RelaxSymbolic as RelaxSymbolic
from boundgraph.passes.relu_rows import ReluRows as ReluRows
from boundgraph.passes.split_batch import SplitBatch as SplitBatch
