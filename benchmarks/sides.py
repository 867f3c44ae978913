"""The sides of a step's comparison: the network of a `Problem` in sherl, PyTorch and JAX, and bare matrix products.

A side is built in a process of its own, so its constructor imports what it needs. ``loss_and_gradients()`` gives a
float and NumPy arrays by parameter name, ``step()`` takes one AdamW step.
"""

import concurrent.futures
import contextlib
import dataclasses
import itertools
import os

import numpy as np

from benchmarks.problem import draw

EPS = 1e-8
LEARNING_RATE = 1e-4
TILE_ROWS = 512  # rows of the products by which the machine's rate is told; those of a large tile of sherl
FIRST_ROW = ", first row"  # ends the labels of peers whose late layer computes the row alone that the head reads
BFLOAT16 = "sherl bfloat16"
PRODUCTS = 64  # products of each thread in one step of `Products`: enough that its start does not count


class SherlSide:
    """A network in sherl, its weights those of the problem, and what it takes of a batch: the base of its sides."""

    def __init__(self, problem, network, *batch, **settings):
        import sherl

        sherl.set_num_threads(problem.threads)
        self.problem, self.network, self.batch, self.settings = problem, network, batch, settings
        network.load_state_dict({name: problem.trained(name, value.shape)
                                 for name, value in network.state_dict().items()})
        self.stepper = network.stepper(optimizer="adamw", learning_rate=LEARNING_RATE)

    def loss_and_gradients(self):
        loss, gradients = self.network.loss_and_gradients(*self.batch, **self.settings)
        return float(loss), gradients

    def step(self):
        return self.stepper(*self.batch, **self.settings)


class TorchSide:
    """A network of `peer_torch.Trained`, its weights those of the problem, and a batch: the base of PyTorch's sides."""

    def __init__(self, problem, network, *batch):
        import torch

        torch.set_num_threads(problem.threads)
        network.load_trainable({name: problem.trained(name, tuple(value.shape))
                                for name, value in network.trainable().items()})
        self.network, self.batch = network, batch
        self.stepper = network.stepper(LEARNING_RATE)

    def loss_and_gradients(self):
        loss, gradients = self.network.loss_and_gradients(*self.batch)
        return loss.item(), {name: value.numpy() for name, value in gradients.items()}

    def step(self):
        return self.stepper(*self.batch)


class Sherl(SherlSide):
    """The network in sherl, through its public API; ``late_dtype`` is that of its late route."""

    def __init__(self, problem, late_dtype="float32"):
        import sherl

        taps, labels, mask = problem.inputs()
        network = sherl.SideNetwork(
            early=sherl.MTSA(taps=problem.taps, features=problem.features, hidden=problem.hidden, down="layernorm",
                             guidance="token", up_norm="layernorm", eps=EPS),
            late=[sherl.TransformerLayer.from_bert(problem.layer_weights(), heads=problem.heads)],
            head=sherl.Classifier(features=problem.features, classes=problem.classes, pool=problem.head),
            seed=problem.seed, late_dtype=late_dtype)
        super().__init__(problem, network, taps, labels, mask=mask)

    def planned_growth(self):
        """Bytes that the memory plan names beyond the weights."""
        plan = self.network.memory_plan(batch_size=self.problem.batch, tokens=self.problem.tokens)
        return plan.gradients + plan.optimizer + plan.workspace


class Torch(TorchSide):
    """The network in PyTorch.

    Parameters
    ----------
    problem : Problem
    needed_rows : bool
        Whether the late layer computes only the row that the head reads.
    compiled : bool
        Whether the network goes through torch.compile.
    autocast : bool
        Whether it runs under bfloat16 autocast.
    """

    def __init__(self, problem, needed_rows=False, compiled=False, autocast=False):
        import torch

        from benchmarks import peer_torch

        taps, labels, mask = problem.inputs()
        weights = {name: torch.from_numpy(value) for name, value in problem.layer_weights().items()}
        network = peer_torch.SideNetwork(
            peer_torch.MTSA(problem.taps, problem.features, problem.hidden, up_norm="layernorm", eps=EPS),
            [peer_torch.TransformerLayer(weights, problem.heads)],
            peer_torch.Classifier(problem.features, problem.classes, pool=problem.head),
            needed_rows=needed_rows, autocast=autocast)
        super().__init__(problem, network, [torch.from_numpy(tap) for tap in taps], torch.from_numpy(labels),
                         None if mask is None else torch.from_numpy(mask))
        if compiled:
            network.compile()


class Jax:
    """The network in JAX, the whole step in one jit; with ``needed_rows`` as for `Torch`."""

    def __init__(self, problem, needed_rows=False):
        # JAX takes its number of threads from the processors that it may use.
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:problem.threads])
        from benchmarks import peer_jax

        taps, labels, mask = problem.inputs()
        settings = peer_jax.Settings(problem.heads, problem.head, needed_rows, EPS, LEARNING_RATE)
        self.peer = peer_jax.SideNetwork(settings, taps, labels, mask, problem.layer_weights())
        self.peer.load({name: draw(name, shape, problem.seed)
                        for name, shape in peer_jax.parameter_shapes(problem).items()})

    def loss_and_gradients(self):
        return self.peer.loss_and_gradients()

    def step(self):
        return self.peer.step()


class Products:
    """Products of the size of a tile, one at a time on each thread, in NumPy: the rate that the machine gives.

    The BLAS behind NumPy must be held to one thread, and to the kernels that sherl has, before the process starts;
    `products_blas` does that.
    """

    def __init__(self, problem):
        rng = np.random.default_rng(problem.seed)
        self.jobs = [(rng.standard_normal((TILE_ROWS, problem.features), dtype=np.float32),
                      rng.standard_normal((problem.features, problem.features), dtype=np.float32),
                      np.empty((TILE_ROWS, problem.features), np.float32)) for _ in range(problem.threads)]
        # A thread that just woke may share a processor with another for longer than a step takes, so each gets its own.
        processors = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_setaffinity") else [None]
        self.pools = [concurrent.futures.ThreadPoolExecutor(1, initializer=_stay_on, initargs=(processor,))
                      for processor, _ in zip(itertools.cycle(processors), self.jobs)]

    def step(self):
        for done in [pool.submit(_multiply, job) for pool, job in zip(self.pools, self.jobs)]:
            done.result()

    def operations(self):
        """Floating-point operations of a step."""
        return sum(2 * PRODUCTS * a.size * b.shape[1] for a, b, _ in self.jobs)


def _stay_on(processor):
    if processor is not None:
        os.sched_setaffinity(0, {processor})


def _multiply(job):
    for _ in range(PRODUCTS):
        np.matmul(job[0], job[1], out=job[2])


@contextlib.contextmanager
def products_blas():
    """While it lasts, new processes hold NumPy's OpenBLAS to one thread, and to the kernels that sherl's has."""
    from sherl import _core

    kernels = _core.config()["blas"].split()[-2].upper()
    settings = {"OPENBLAS_NUM_THREADS": "1", "OPENBLAS_CORETYPE": kernels}
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@dataclasses.dataclass(frozen=True)
class Peer:
    """What sherl is compared with, and how far its loss and gradients may lie from sherl's (relative).

    ``gradient_tolerance`` bounds all gradients as one vector, ``worst_tolerance`` those of any one parameter.
    """

    build: type
    arguments: tuple = ()
    loss_tolerance: float = 1e-4
    gradient_tolerance: float = 1e-3
    worst_tolerance: float = 1e-3


# bfloat16 has eight bits: its gradients are close as a whole, while a small one may drown in rounding.
BFLOAT16_TOLERANCES = (0.05, 0.2, float("inf"))


def eager(problem):
    """Peers in eager PyTorch by label."""
    return both_forms(problem, {"PyTorch": lambda needed: Peer(Torch, (needed,))})


def everyone(problem):
    """All peers by label, and sherl with its late route in bfloat16."""
    return {BFLOAT16: Peer(Sherl, ("bfloat16",), *BFLOAT16_TOLERANCES)} | both_forms(problem, {
        "PyTorch": lambda needed: Peer(Torch, (needed,)),
        "PyTorch compiled": lambda needed: Peer(Torch, (needed, True)),
        "PyTorch bfloat16": lambda needed: Peer(Torch, (needed, False, True), *BFLOAT16_TOLERANCES),
        "JAX jit": lambda needed: Peer(Jax, (needed,)),
    })


def both_forms(problem, makers):
    """Each peer as a user writes it, and where the head reads the first row, also computing only that late."""
    forms = {"": False} | ({FIRST_ROW: True} if problem.head == "first" else {})
    return {name + suffix: make(needed) for name, make in makers.items() for suffix, needed in forms.items()}
