"""The SHERL path for BERT written in JAX: forward, gradient and AdamW as one compiled function.

Parameters carry the names that sherl gives them. Batches are padded, as XLA compiles for fixed shapes.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

GATE_TEMPERATURE = 0.1
DOWN_NORM_EPS = 1e-5
NORM_EPS = 1e-12
BETAS = (0.9, 0.999)
ADAM_EPS = 1e-8
WEIGHT_DECAY = 0.01


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the compiled function is specialized on."""

    heads: int
    pool: str
    needed_rows: bool
    eps: float
    learning_rate: float


def parameter_shapes(problem):
    """Shape of each trainable parameter of a `Problem` by name."""
    features, hidden = problem.features, problem.hidden
    shapes = {}
    for tap in range(problem.taps):
        shapes |= {f"early.down.{tap}.weight": (hidden, features), f"early.down.{tap}.bias": (hidden,),
                   f"early.down.{tap}.norm.weight": (hidden,), f"early.down.{tap}.norm.bias": (hidden,)}
    return shapes | {
        "early.guide.weight": (1, hidden), "early.guide.bias": (1,),
        "early.up.weight": (features, hidden), "early.up.bias": (features,),
        "early.up.norm.weight": (features,), "early.up.norm.bias": (features,), "early.gate": (1,),
        "head.weight": (problem.classes, features), "head.bias": (problem.classes,),
    }


def linear(weights, name, x):
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def layer_norm(weights, name, x, eps):
    centred = x - x.mean(-1, keepdims=True)
    scale = jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + eps)
    return centred * scale * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def mtsa(weights, taps, eps):
    """Adapter with layer-norm projections, token guidance, and a normalization after the projection back."""
    reduced = [layer_norm(weights, f"early.down.{index}.norm", linear(weights, f"early.down.{index}", tap),
                          DOWN_NORM_EPS) for index, tap in enumerate(taps)]
    shallow, guide = jnp.stack(reduced[:-1], axis=-2), reduced[-1]
    directions = shallow / (jnp.linalg.norm(shallow, axis=-1, keepdims=True) + eps)
    redundancy = jax.nn.relu(directions @ directions.swapaxes(-1, -2)).sum(-1)
    relevance = jax.nn.relu(linear(weights, "early.guide", shallow * guide[..., None, :]))[..., 0]
    share = relevance / redundancy
    share = share / (jnp.abs(share).sum(-1, keepdims=True) + eps)
    fused = (share[..., None, :] @ shallow)[..., 0, :] + guide
    lifted = layer_norm(weights, "early.up.norm", linear(weights, "early.up", jax.nn.relu(fused)), NORM_EPS)
    return lifted + jnp.tanh(weights["early.gate"] / GATE_TEMPERATURE) * taps[-1]


def bert_layer(weights, x, mask, heads, rows):
    """Output of the first ``rows`` tokens of each sample, or of all."""
    def split(values):
        return values.reshape(*values.shape[:2], heads, -1).swapaxes(1, 2)

    asked = x if rows is None else x[:, :rows]
    query, key, value = (split(linear(weights, f"attention.self.{name}", source))
                         for name, source in (("query", asked), ("key", x), ("value", x)))
    scores = query @ key.swapaxes(-1, -2) / np.float32(np.sqrt(query.shape[-1]))
    if mask is not None:
        scores = jnp.where(mask[:, None, None, :], scores, -jnp.inf)
    context = (jax.nn.softmax(scores) @ value).swapaxes(1, 2).reshape(asked.shape)
    attended = layer_norm(weights, "attention.output.LayerNorm",
                          asked + linear(weights, "attention.output.dense", context), NORM_EPS)
    inner = jax.nn.gelu(linear(weights, "intermediate.dense", attended), approximate=False)
    return layer_norm(weights, "output.LayerNorm", attended + linear(weights, "output.dense", inner), NORM_EPS)


def pooled(x, mask, pool):
    if pool == "first":
        return x[:, 0]
    if mask is None:
        return x.mean(1)
    kept = mask.astype(x.dtype)[:, None]
    return (kept @ x)[:, 0] / kept.sum(-1)


def loss(parameters, settings, frozen, taps, labels, mask):
    rows = 1 if settings.needed_rows and settings.pool == "first" else None
    x = bert_layer(frozen, mtsa(parameters, taps, settings.eps), mask, settings.heads, rows)
    scores = jax.nn.log_softmax(linear(parameters, "head", pooled(x, mask, settings.pool)))
    return -jnp.take_along_axis(scores, labels[:, None], axis=1).mean()


@functools.partial(jax.jit, static_argnums=1)
def loss_and_gradients(parameters, settings, frozen, taps, labels, mask):
    return jax.value_and_grad(loss)(parameters, settings, frozen, taps, labels, mask)


@functools.partial(jax.jit, static_argnums=2, donate_argnums=(0, 1))
def adamw_step(parameters, moments, settings, number, frozen, taps, labels, mask):
    """New parameters and moments, and the loss before the step; ``number`` counts steps from 1."""
    value, gradients = jax.value_and_grad(loss)(parameters, settings, frozen, taps, labels, mask)
    updated, kept = {}, {}
    for name, gradient in gradients.items():
        first = BETAS[0] * moments[name][0] + (1 - BETAS[0]) * gradient
        second = BETAS[1] * moments[name][1] + (1 - BETAS[1]) * jnp.square(gradient)
        direction = first / (1 - BETAS[0] ** number) / (jnp.sqrt(second / (1 - BETAS[1] ** number)) + ADAM_EPS)
        updated[name] = (1 - settings.learning_rate * WEIGHT_DECAY) * parameters[name] \
            - settings.learning_rate * direction
        kept[name] = (first, second)
    return updated, kept, value


class SideNetwork:
    """The network on one batch, with its parameters and the moments of AdamW."""

    def __init__(self, settings, taps, labels, mask, frozen):
        self.settings = settings
        self.batch = ({name: jnp.asarray(value) for name, value in frozen.items()},
                      [jnp.asarray(tap) for tap in taps], jnp.asarray(labels),
                      None if mask is None else jnp.asarray(mask))

    def load(self, state):
        """Take arrays by name as parameters and start the optimizer anew."""
        self.parameters = {name: jnp.asarray(value) for name, value in state.items()}
        self.moments = {name: (jnp.zeros(value.shape), jnp.zeros(value.shape)) for name, value in state.items()}
        self.steps = 0

    def loss_and_gradients(self):
        value, gradients = loss_and_gradients(self.parameters, self.settings, *self.batch)
        return float(value), {name: np.asarray(gradient) for name, gradient in gradients.items()}

    def step(self):
        self.steps += 1
        self.parameters, self.moments, value = adamw_step(
            self.parameters, self.moments, self.settings, np.float32(self.steps), *self.batch)
        # The loss is ready before the update is; a step ends with both.
        jax.block_until_ready(self.parameters)
        return float(value)
