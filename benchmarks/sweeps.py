"""Sweeps of several networks beside as many single fits, and both beside reading the texts with the backbone once.

Every job is a side of its own, so that the jobs of a comparison take turns. Token ids are drawn, with the lengths of
real texts; what is timed depends on the lengths alone.
"""

import numpy as np

from benchmarks import measure

EPOCHS = 3  # the default of fit and sweep
LEARNING_RATE = 1e-3
EXTRACTION, FITS, SWEEP = "extraction", "fits", "sweep"


class Training:
    """Stored features of a `Problem`, as `extract` stores them, and networks that differ in seed and learning rate."""

    def __init__(self, problem, networks):
        import sherl

        sherl.set_num_threads(problem.threads)
        self.sherl, self.problem, self.networks = sherl, problem, networks
        taps, self.labels, mask = problem.inputs()
        self.features = sherl.Features.from_arrays(taps, mask).astype("float16")
        self.layer = sherl.TransformerLayer.from_bert(problem.layer_weights(), heads=problem.heads)

    def network(self, seed):
        sherl, problem = self.sherl, self.problem
        return sherl.SideNetwork(
            sherl.MTSA(problem.taps, problem.features, problem.hidden, up_norm="layernorm"), [self.layer],
            sherl.Classifier(problem.features, problem.classes, pool=problem.head), seed=seed)

    def configurations(self):
        """By name a new network and its learning rate."""
        return {str(seed): {"network": self.network(seed), "learning_rate": LEARNING_RATE * (1 + seed / 10)}
                for seed in range(self.networks)}


class Fits(Training):
    """One fit after the other."""

    def step(self):
        for chosen in self.configurations().values():
            chosen["network"].fit(self.features, self.labels, epochs=EPOCHS, learning_rate=chosen["learning_rate"],
                                  progress=False)


class Sweep(Training):
    """One sweep."""

    def step(self):
        self.sherl.sweep(self.features, self.labels, self.configurations(), epochs=EPOCHS, progress=False)


class Extraction:
    """Hidden states of MiniLM for texts of the same lengths."""

    def __init__(self, problem):
        import sherl
        from sherl.data.assets import fetch_demo_assets

        sherl.set_num_threads(problem.threads)
        self.backbone = sherl.load_backbone(fetch_demo_assets(progress=False).backbone_folder)
        rng = np.random.default_rng(problem.seed)
        self.ids = [rng.integers(1000, 30000, length).tolist() for length in problem.sample_lengths()]

    def step(self):
        self.backbone.extract(self.ids, taps="all")


def jobs(problem, counts):
    """Builder and arguments of each job by name: (what it does, its networks)."""
    made = {(EXTRACTION, 0): (Extraction, (problem,))}
    for count in counts:
        made[FITS, count] = (Fits, (problem, count))
        made[SWEEP, count] = (Sweep, (problem, count))
    return made


def run(problem, counts, repeats):
    """Timing of each job by name; all take turns."""
    sides = {}
    try:
        for name, (build, arguments) in jobs(problem, counts).items():
            sides[name] = measure.Side(build, *arguments)
        return measure.paired(sides, repeats, warm_up=1)
    finally:
        for side in sides.values():
            side.close()


def from_features(timings, count, kind=SWEEP):
    """A sweep, or fits, of some networks as multiples of one fit, a value a round."""
    return tuple(many / one for many, one in zip(timings[kind, count].rounds, timings[FITS, 1].rounds))


def beside_fits(timings, count):
    """A sweep as multiples of as many fits, a value a round."""
    return tuple(sweep / fits for sweep, fits in zip(timings[SWEEP, count].rounds, timings[FITS, count].rounds))


def from_text(timings, count):
    """Extraction and a sweep as multiples of extraction and one fit, a value a round."""
    return tuple((extraction + sweep) / (extraction + one) for extraction, sweep, one in zip(
        timings[EXTRACTION, 0].rounds, timings[SWEEP, count].rounds, timings[FITS, 1].rounds))
