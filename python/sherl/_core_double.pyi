"""The C core compiled in float64; the contract is that of sherl._core."""

from sherl._core import REAL as REAL
from sherl._core import SAMPLES as SAMPLES
from sherl._core import Graph as Graph
from sherl._core import Parameters as Parameters
from sherl._core import Program as Program
from sherl._core import Trainer as Trainer
from sherl._core import allocations as allocations
from sherl._core import config as config
from sherl._core import fail_allocation as fail_allocation
from sherl._core import live_allocations as live_allocations
from sherl._core import set_threads as set_threads
from sherl._core import threads as threads
