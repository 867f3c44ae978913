"""One experiment: frozen features taken once, then a trivial guess, a linear probe and a SHERL network on them."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import sherl

from ..backbones.tokenization import inputs_fingerprint
from ..checks import count_of
from ..features.manifest import read_manifest
from ..training.metrics import METRICS
from ..training.probe import fit_linear_probe
from .console import aligned
from .measure import Measured, megabytes

__all__ = ["Result", "Sample", "Settings", "results_record", "results_table", "run_experiment"]

WARMUP = 0.06
DROPOUT = 0.1


@dataclass(frozen=True)
class Settings:
    """What an experiment does; the fields are the options of `sherl train`."""

    task: str
    outputs: int
    metrics: tuple
    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    hidden: int
    pool: str
    max_length: int
    seed: int
    patience: int | None
    probe: bool
    schedule: str = "linear"
    step_every: int | None = None
    step_factor: float = 0.1
    clip_norm: float | None = 1.0
    learning_rate_factors: dict | None = None
    ema: float | None = None


@dataclass(frozen=True)
class Sample:
    """Texts (str, or pairs of str) with their targets."""

    texts: list
    targets: np.ndarray

    def __len__(self):
        return len(self.texts)


@dataclass(frozen=True)
class Result:
    """How one predictor did on the held-out texts; seconds and bytes are those of its training."""

    name: str
    scores: dict
    parameters: int
    seconds: float | None = None
    memory: int | None = None


def run_experiment(backbone, train, dev, settings, console, folder=None):
    """Train on one sample's features and score on another's.

    Parameters
    ----------
    backbone : sherl backbone, or None
        None where the features are in the folder already.
    train, dev : Sample
    settings : Settings
    console : Console
    folder : path-like, optional
        Where the features are kept on disk: in its folders train and dev.

    Returns
    -------
    network : sherl.SideNetwork
    results : list of Result
        Trivial guess, linear probe (if asked for), SHERL.
    interrupted : bool
        Whether Ctrl-C ended the training early; the network then has the weights of its last step.
    """
    with Measured() as reading:
        features = [
            _extract(backbone, sample, settings, console, folder and Path(folder) / name)
            for name, sample in (("train", train), ("dev", dev))
        ]
    rate = sum(int(np.sum(one.lengths)) for one in features) / max(reading.seconds, 1e-9)
    rate = f", {rate:,.0f} tokens a second" if folder is None else ""
    size = megabytes(sum(one.nbytes for one in features))
    console.say(f"   {reading.seconds:.1f} s{rate}; the states take {size} as {features[0].dtypes[0]}")

    results = [_trivial(train, dev, settings)]
    if settings.probe:
        console.say("Fitting a linear probe on mean-pooled outputs of the last layer")
        results.append(_probe(features, train, dev, settings, console))
    features = [one.select(range(one.preprocessing["layers"])) for one in features]

    network = _network(features[0], settings)
    length = count_of(settings.epochs, "epoch")
    console.say(f"Training a SHERL network of {network.num_parameters():,} parameters for {length}")
    unit = _Unit.of(train.targets, settings.task)
    with Measured() as training:
        history = network.fit(
            features[0],
            unit.standardised(train.targets),
            epochs=settings.epochs,
            batch_size=settings.batch_size,
            learning_rate=settings.learning_rate,
            weight_decay=settings.weight_decay,
            schedule=settings.schedule,
            step_every=settings.step_every,
            step_factor=settings.step_factor,
            clip_norm=settings.clip_norm,
            learning_rate_factors=settings.learning_rate_factors,
            ema=settings.ema,
            warmup=WARMUP,
            validation=(features[1], unit.standardised(dev.targets)),
            patience=settings.patience,
            metrics=list(settings.metrics),
            progress=console.progress,
            seed=settings.seed,
        )
    unit.restore(network)
    scores = _scores(network.predict(features[1], progress=console.progress), dev.targets, settings)
    results.append(Result("SHERL", scores, network.num_parameters(), training.seconds, training.memory))
    interrupted = history.stopped == "interrupt"
    if interrupted:
        console.say("   interrupted: what follows is from the steps so far")
    return network, results, interrupted


def results_table(results):
    """Lay results out as an aligned table."""
    rows = [["", *results[0].scores, "trainable", "seconds", "memory"]]
    for result in results:
        scores = ["n/a" if math.isnan(score) else f"{score:.4f}" for score in result.scores.values()]
        trained = result.seconds is not None
        seconds, memory = (f"{result.seconds:.1f}", megabytes(result.memory)) if trained else ("-", "-")
        rows.append([result.name, *scores, f"{result.parameters:,}", seconds, memory])
    return aligned(rows)


def results_record(results):
    """Give results as a list of dict, for JSON."""
    return [
        {
            "name": result.name,
            **result.scores,
            "trainable_parameters": result.parameters,
            "seconds": result.seconds,
            "memory_bytes": result.memory,
        }
        for result in results
    ]


def _extract(backbone, sample, settings, console, folder):
    """Return the features of a sample, float16 unless they are on disk already."""
    if backbone is None:
        return _open(folder, sample, settings)
    return backbone.extract(
        sample.texts,
        taps="all+last" if settings.probe or folder else "all",
        max_length=settings.max_length,
        dtype="float16",
        progress=console.progress,
        out=folder,
    )


def _open(folder, sample, settings):
    """Return the features of a folder, which must be those of the sample."""
    manifest, features = read_manifest(folder), sherl.Features.open(folder)
    facts = {"layers": 0, "max_length": None, **(features.preprocessing or {})}
    states, layers = (features.source or {}).get("states"), facts["layers"]
    if not layers or states not in (list(range(layers)), list(range(layers + 1))) or not features.layers:
        raise ValueError(f"{folder} must hold all states of a backbone and its last layer, as --backbone writes them")
    if manifest.inputs != inputs_fingerprint(sample.texts):
        raise ValueError(f"{folder} must hold the features of the texts of the table, but it holds those of others")
    if facts["max_length"] != settings.max_length:
        raise ValueError(f"{folder} has --max-length {facts['max_length']}, got {settings.max_length}")
    if settings.probe and len(states) == layers:
        raise ValueError(f"{folder} lacks the last layer's output, which the linear probe needs: pass --no-probe")
    return features


def _network(features, settings):
    channels = features.channels[-1]
    early = sherl.MTSA(
        taps=len(features.channels),
        features=channels,
        hidden=settings.hidden,
        down="layernorm",
        up_norm="layernorm",
        dropout=DROPOUT,
    )
    if settings.task == "classification":
        head = sherl.Classifier(features=channels, classes=settings.outputs, pool=settings.pool)
    else:
        head = sherl.Regressor(features=channels, outputs=settings.outputs, pool=settings.pool)
    return sherl.SideNetwork(early=early, late=features.layers[-1:], head=head, seed=settings.seed)


@dataclass(frozen=True)
class _Unit:
    """Mean and spread of the numbers to learn, which a network learns best around 0 with spread 1."""

    mean: float
    spread: float

    @classmethod
    def of(cls, targets, task):
        if task == "classification":
            return cls(0.0, 1.0)
        return cls(float(np.mean(targets)), float(np.std(targets)) or 1.0)

    def standardised(self, targets):
        if (self.mean, self.spread) == (0.0, 1.0):
            return targets
        return ((targets - self.mean) / self.spread).astype(np.float32)

    def restore(self, network):
        """Let the head, a linear map, give numbers in the unit of the targets again."""
        state = network.state_dict()
        state["head.weight"] = state["head.weight"] * self.spread
        state["head.bias"] = state["head.bias"] * self.spread + self.mean
        network.load_state_dict(state)


def _trivial(train, dev, settings):
    if settings.task == "classification":
        name, guess = "majority class", np.bincount(train.targets).argmax()
    else:
        name, guess = "mean", train.targets.mean()
    return Result(name, _scores(np.full(len(dev), guess), dev.targets, settings), 0)


def _probe(features, train, dev, settings, console):
    with Measured() as fitting:
        pooled = [one.pooled(tap=-1, how="mean") for one in features]
        probe = fit_linear_probe(pooled[0], train.targets, settings.task, seed=settings.seed)
    chosen = f"penalty {probe.penalty:g}, features {'standardised' if probe.standardised else 'as they are'}"
    console.say(f"   {chosen}: chosen on a tenth of the training texts")
    scores = _scores(probe.predict(pooled[1]), dev.targets, settings)
    return Result("linear probe", scores, probe.num_parameters, fitting.seconds, fitting.memory)


def _scores(predictions, targets, settings):
    return {name: METRICS[name](predictions, targets) for name in settings.metrics}
