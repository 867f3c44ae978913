"""Floating-point operations that one training step needs, counted from its sizes.

A product of (m, k) and (k, n) counts 2 m k n. Only products are counted: what is done element by element (norms,
activations, softmax, the optimizer) is memory traffic rather than arithmetic, and adds under two percent. Every
function gives the operations of forward plus backward, without any that could be left out: no gradient of taps or of
frozen weights, no padding, and of the late layer only the rows that the head reads.
"""

from benchmarks.problem import EXPANSION


def product(rows, inner, columns):
    """One product of (rows, inner) and (inner, columns)."""
    return 2 * rows * inner * columns


def adapter(rows, taps, features, hidden):
    """The MTSA over some rows.

    The projections of the taps take a product forward and one backward (of the weights; taps take no gradient), the
    projection back takes one and two. Guidance: cosines between the shallow features of a row, and their weighted sum,
    each with the gradient of both operands.
    """
    down = 2 * taps * product(rows, features, hidden)
    up = 3 * product(rows, hidden, features)
    cosines = 3 * product(rows * (taps - 1), hidden, taps - 1)
    weighing = 2 * 3 * product(rows, taps - 1, hidden)  # the relevance of each shallow feature, and the sum
    return down + up + cosines + weighing


def whole_layer(lengths, features):
    """A frozen transformer layer that computes every row: each product once forward, once backward for its input."""
    weights = sum(2 * product(sum(lengths), inner, outer) for inner, outer in layer_maps(features))
    # Scores and weighted sums take a product each; backward has two operands for each of them.
    attention = sum(3 * 2 * product(length, features, length) for length in lengths)
    return weights + attention


def single_query_layer(lengths, features, heads):
    """The same layer where only the first row of each sample is read.

    With one query a sample, scores are (W_k^T q) . x_t and the context is W_v (sum_t p_t x_t), head by head: keys and
    values of all rows are never made. What reads all rows is then, for each head, a product of x with one vector and a
    sum of x with one weight a row: two forward, and backward two for the gradient of x, one for that of the weights
    and one for that of W_k^T q.
    """
    weights = sum(2 * product(len(lengths), inner, outer) for inner, outer in layer_maps(features))
    return weights + 6 * product(sum(lengths), features, heads)


def layer_maps(features):
    """Input and output channels of the linear maps of a layer: query, key, value, output, and the feed-forward part."""
    return 4 * [(features, features)] + [(features, EXPANSION * features), (EXPANSION * features, features)]


def head(samples, features, classes):
    """The classifier: forward, and the gradients of its input and its weights."""
    return 3 * product(samples, features, classes)


def step(problem):
    """All of one training step of a `Problem`."""
    lengths = problem.sample_lengths().tolist()
    late = (single_query_layer(lengths, problem.features, problem.heads) if problem.head == "first"
            else whole_layer(lengths, problem.features))
    return (adapter(sum(lengths), problem.taps, problem.features, problem.hidden) + late
            + head(problem.batch, problem.features, problem.classes))
