"""Settings of optimizers and learning rate schedules, checked, and the core's trainer made of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

from .. import _core
from .._typing import Optimizer, Schedule
from ..checks import one_of, real_number, whole_number
from .chain import Chain, ChainTrainer, Program

NO_DECAY = ("*bias", "*norm*", "*gate", "*log_scale")
MOMENTS = {"adamw": 2, "adam": 2, "sgd": 1}  # numbers that an optimizer keeps for each parameter, at most
SCHEDULES = ("constant", "linear", "cosine", "step")


@dataclass(frozen=True)
class OptimizerSettings:
    """How steps are taken.

    Attributes
    ----------
    optimizer : {"adamw", "adam", "sgd"}
    learning_rate : float
    weight_decay : float
        Decoupled for AdamW; added to the gradient otherwise.
    no_decay : tuple of str
        Patterns of the names of parameters that do not decay; ``*`` stands for any letters.
    betas : tuple of float
        Of Adam and AdamW.
    eps : float
        Of Adam and AdamW.
    momentum : float
        Of SGD.
    clip_norm : float or None
        Largest norm of the gradient of all parameters.
    schedule : {"constant", "linear", "cosine", "step"}
    warmup : float or int
        Steps over which the learning rate rises; below 1 as a share of all steps.
    step_every, step_factor : int or None, float
        The step schedule multiplies the learning rate by `step_factor` every so many steps.
    learning_rate_factors, weight_decay_factors : dict of str to float, or None
        By what learning rate and weight decay of parameters are multiplied, by pattern of their names; the first
        pattern that fits counts.
    ema : float or None
        Decay of the moving average of the weights.
    """

    optimizer: Optimizer = "adamw"
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    no_decay: Sequence[str] = NO_DECAY
    betas: Sequence[float] = (0.9, 0.999)
    eps: float = 1e-8
    momentum: float = 0.0
    clip_norm: float | None = None
    schedule: Schedule = "constant"
    warmup: float = 0
    step_every: int | None = None
    step_factor: float = 0.1
    learning_rate_factors: Mapping[str, float] | None = None
    weight_decay_factors: Mapping[str, float] | None = None
    ema: float | None = None

    def __post_init__(self) -> None:
        one_of(self.optimizer, "optimizer", tuple(MOMENTS))
        one_of(self.schedule, "schedule", SCHEDULES)
        betas = _sequence(self.betas, "betas")
        if len(betas) != 2:
            raise ValueError(f"betas must be two numbers, got {len(betas)}")
        patterns = [self.no_decay] if isinstance(self.no_decay, str) else _sequence(self.no_decay, "no_decay")
        if not all(isinstance(pattern, str) for pattern in patterns):
            raise TypeError(f"no_decay must be patterns of parameter names, got {self.no_decay!r}")
        checked = {
            "learning_rate": real_number(self.learning_rate, "learning_rate", least=0.0),
            "weight_decay": real_number(self.weight_decay, "weight_decay", least=0.0),
            "no_decay": tuple(patterns),
            "betas": tuple(real_number(beta, "betas", least=0.0, below=1.0) for beta in betas),
            "eps": real_number(self.eps, "eps", above=0.0),
            "momentum": real_number(self.momentum, "momentum", least=0.0, below=1.0),
            "clip_norm": None if self.clip_norm is None else real_number(self.clip_norm, "clip_norm", above=0.0),
            "warmup": _warmup(self.warmup),
            "step_every": None if self.step_every is None else whole_number(self.step_every, "step_every", 1),
            "step_factor": real_number(self.step_factor, "step_factor", above=0.0),
            "learning_rate_factors": _factors(self.learning_rate_factors, "learning_rate_factors"),
            "weight_decay_factors": _factors(self.weight_decay_factors, "weight_decay_factors"),
            "ema": None if self.ema is None else real_number(self.ema, "ema", least=0.0, below=1.0),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)
        if self.schedule == "step" and self.step_every is None:
            raise ValueError("schedule 'step' needs step_every, the number of steps after which the rate changes")

    def check_patterns(self, names: Sequence[str]) -> None:
        """Raise where a pattern of the factors fits none of the parameters `names`."""
        for argument in ("learning_rate_factors", "weight_decay_factors"):
            for pattern in getattr(self, argument) or ():
                if not any(fnmatchcase(name, pattern) for name in names):
                    raise ValueError(f"{argument} must be patterns of parameter names; {pattern!r} fits none of them")

    def trainer(self, program: Program, names: Sequence[str], total_steps: int, prefix: str = "",
                shown: str = "") -> _core.Trainer | ChainTrainer:
        """Return a trainer of the parameters `names`, which the program knows under a prefix.

        Patterns are those of the names with `shown` before them.
        """
        if self.schedule in ("linear", "cosine") and not total_steps:
            raise ValueError(f"schedule {self.schedule!r} needs total_steps, the number of steps of the whole training")
        if isinstance(self.warmup, float) and self.warmup and not total_steps:
            raise ValueError("warmup as a share needs total_steps, the number of steps of the whole training")
        warmup = int(self.warmup * total_steps) if isinstance(self.warmup, float) else self.warmup
        if total_steps and warmup >= total_steps:
            raise ValueError(f"warmup must be fewer than the {total_steps} steps of the training, got {warmup}")
        make = program.trainer if isinstance(program, Chain) else partial(_core.Trainer, program)
        trainer = make(
            optimizer=self.optimizer, learning_rate=self.learning_rate, weight_decay=self.weight_decay,
            momentum=self.momentum, beta1=self.betas[0], beta2=self.betas[1], eps=self.eps,
            clip_norm=self.clip_norm or 0.0, schedule=self.schedule, warmup_steps=warmup, total_steps=total_steps,
            step_every=self.step_every or 0, step_factor=self.step_factor,
            parameters=[prefix + name for name in names],
            no_decay=[prefix + name for name in names if any(fnmatchcase(shown + name, pattern)
                                                            for pattern in self.no_decay)],
        )
        for name in names:
            trainer.set_factors(prefix + name, _factor_of(shown + name, self.learning_rate_factors),
                                _factor_of(shown + name, self.weight_decay_factors))
        return trainer


def _sequence(values: Any, name: str) -> list[Any]:
    if isinstance(values, str) or not hasattr(values, "__iter__"):
        raise TypeError(f"{name} must be a sequence, got {values!r}")
    return list(values)


def _factors(values: object, name: str) -> dict[str, float] | None:
    if values is None:
        return None
    if not isinstance(values, Mapping) or not all(isinstance(pattern, str) for pattern in values):
        raise TypeError(f"{name} must be a dictionary of numbers by pattern of parameter names, got {values!r}")
    return {pattern: real_number(value, f"{name}[{pattern!r}]", least=0.0) for pattern, value in values.items()}


def _factor_of(name: str, factors: Mapping[str, float] | None) -> float:
    return next((value for pattern, value in (factors or {}).items() if fnmatchcase(name, pattern)), 1.0)


def _warmup(value: object) -> float | int:
    value = real_number(value, "warmup", least=0.0)
    if value < 1:
        return value
    if value != int(value):
        raise ValueError(f"warmup must be a share below 1 or a whole number of steps, got {value}")
    return int(value)
