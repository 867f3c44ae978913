"""The kinds of late layers, for annotations."""

from typing import TypeAlias

from .foreign import ForeignLayer
from .residual import BasicBlock, Bottleneck
from .transformer import TransformerLayer

OwnLayer: TypeAlias = TransformerLayer | Bottleneck | BasicBlock
LateLayer: TypeAlias = TransformerLayer | Bottleneck | BasicBlock | ForeignLayer
