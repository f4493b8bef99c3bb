"""Soundness checks that our tests share with the authors of new ops and models.

`check_op` draws random uses of a registered op and checks every rule it has against what
the op computes; `check_model` checks a model's bounds at sampled points. What may be
missed by rounding is never a constant: it is derived from the rounding that the ops
declare (`OpSpec.rounding`), for the values at hand.

    >>> check_op("tanh", cases=5)
"""

from boundgraph.ops._spec import OpCase as OpCase
from boundgraph.testing._models import capture_allowance as capture_allowance
from boundgraph.testing._models import check_model as check_model
from boundgraph.testing._models import model_allowance as model_allowance
from boundgraph.testing._models import symbols_of as symbols_of
from boundgraph.testing._ops import DrawnCase as DrawnCase
from boundgraph.testing._ops import check_backward_rule as check_backward_rule
from boundgraph.testing._ops import check_interval_rule as check_interval_rule
from boundgraph.testing._ops import check_op as check_op
from boundgraph.testing._ops import check_samples as check_samples
from boundgraph.testing._ops import check_symbolic_rule as check_symbolic_rule
from boundgraph.testing._ops import draw_case as draw_case
from boundgraph.testing._ops import relaxed_lines as relaxed_lines
from boundgraph.testing._points import sample_point as sample_point
from boundgraph.testing._rounding import allowance as allowance
from boundgraph.testing._rounding import excess as excess
from boundgraph.testing._rounding import gamma as gamma
from boundgraph.testing._rounding import interpret_with_allowance as interpret_with_allowance
from boundgraph.testing._rounding import largest as largest
from boundgraph.testing._rounding import unit_roundoff as unit_roundoff
from boundgraph.testing._table import OpRow as OpRow
from boundgraph.testing._table import op_table as op_table
