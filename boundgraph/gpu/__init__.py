"""What a program becomes on a GPU, worked out without one."""

from boundgraph.gpu.report import GpuReport as GpuReport
from boundgraph.gpu.report import Roofline as Roofline
from boundgraph.gpu.report import report as report
from boundgraph.gpu.report import report_loss as report_loss
from boundgraph.gpu.report import report_program as report_program
from boundgraph.gpu.report import report_step as report_step
from boundgraph.gpu.report import unsupported as unsupported
