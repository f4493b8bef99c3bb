"""The op registry. Importing this package registers every op that ships with BoundGraph."""

from boundgraph.ops import activations as activations
from boundgraph.ops import arithmetic as arithmetic
from boundgraph.ops import cast as cast
from boundgraph.ops import constant as constant
from boundgraph.ops import conv as conv
from boundgraph.ops import indexing as indexing
from boundgraph.ops import joining as joining
from boundgraph.ops import linear as linear
from boundgraph.ops import matmul as matmul
from boundgraph.ops import norm as norm
from boundgraph.ops import padding as padding
from boundgraph.ops import pooling as pooling
from boundgraph.ops import reduce as reduce
from boundgraph.ops import softmax as softmax
from boundgraph.ops import spec as spec
from boundgraph.ops import views as views
from boundgraph.ops._spec import Kind as Kind
from boundgraph.ops._spec import OpSpec as OpSpec
from boundgraph.ops._spec import all_ops as all_ops
from boundgraph.ops._spec import get as get
from boundgraph.ops._spec import lowering as lowering
from boundgraph.ops._spec import lowers as lowers
from boundgraph.ops._spec import register as register
