"""Frontends: from a model to a program."""

from boundgraph.frontends.capture import Capture as Capture
from boundgraph.frontends.capture import capture as capture
