"""Data for training and evaluation: sources, a checked container, resumable batches."""

from boundgraph.data.batches import Batches as Batches
from boundgraph.data.batches import derive_seed as derive_seed
from boundgraph.data.dataset import DataSet as DataSet
from boundgraph.data.load import load as load
