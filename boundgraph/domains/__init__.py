"""Abstract values, input regions and specifications."""

from boundgraph.domains.interval import Interval as Interval
from boundgraph.domains.interval import as_interval as as_interval
from boundgraph.domains.interval import hull as hull
from boundgraph.domains.interval import meet as meet
from boundgraph.domains.regions import Box as Box
from boundgraph.domains.regions import L1Ball as L1Ball
from boundgraph.domains.regions import L2Ball as L2Ball
from boundgraph.domains.regions import LinfBall as LinfBall
from boundgraph.domains.regions import LpBall as LpBall
from boundgraph.domains.regions import Region as Region
from boundgraph.domains.regions import linf_interval as linf_interval
from boundgraph.domains.specs import LinearSpec as LinearSpec
from boundgraph.domains.specs import Margin as Margin
from boundgraph.domains.specs import Spec as Spec
from boundgraph.domains.symbolic import Symbolic as Symbolic
from boundgraph.domains.symbolic import diagonal as diagonal
