"""What bounds cost, and which of them to compute within a budget."""

from boundgraph.planning.cost import CPU as CPU
from boundgraph.planning.cost import MACHINES as MACHINES
from boundgraph.planning.cost import Cost as Cost
from boundgraph.planning.cost import Machine as Machine
from boundgraph.planning.plan import DEFAULT_BYTES as DEFAULT_BYTES
from boundgraph.planning.plan import DEFAULT_SECONDS as DEFAULT_SECONDS
from boundgraph.planning.plan import Budget as Budget
from boundgraph.planning.plan import Plan as Plan
from boundgraph.planning.plan import Planned as Planned
from boundgraph.planning.plan import Task as Task
from boundgraph.planning.plan import cheaper_schedule as cheaper_schedule
from boundgraph.planning.plan import fixed_plan as fixed_plan
from boundgraph.planning.plan import make_plan as make_plan
