"""The batches of an epoch: samples shuffled by a seed, and if asked, put together with others of about their length."""

from __future__ import annotations

import numpy as np

from .._typing import Integers

_POOL = 16  # batches whose samples are sorted by length among themselves


def epoch_batches(lengths: Integers, batch_size: int, seed: int, epoch: int,
                  bucket_by_length: bool = False) -> list[Integers]:
    """Cut the samples of an epoch into batches.

    With `bucket_by_length`, shuffled samples are taken in pools of 16 batches; each pool is sorted by length and cut,
    and the batches of all pools are shuffled. So a batch holds samples of about one length, and yet every epoch sees
    other batches.

    Parameters
    ----------
    lengths : numpy.ndarray of int, shape (samples,)
        Rows of each sample.
    batch_size : int
    seed, epoch : int
        Of the shuffling: equal ones give equal batches.
    bucket_by_length : bool
        Whether to sort.

    Returns
    -------
    list of numpy.ndarray of int64
        Sample numbers of each batch. All batches have `batch_size` samples except one, where they do not divide evenly.
    """
    random = np.random.Generator(np.random.Philox(key=np.array([seed, epoch], np.uint64)))
    order = random.permutation(len(lengths))
    if not bucket_by_length:
        return _cut(order, batch_size)
    pools = _cut(order, _POOL * batch_size)
    batches = [batch for pool in pools for batch in _cut(pool[np.argsort(lengths[pool], kind="stable")], batch_size)]
    return [batches[number] for number in random.permutation(len(batches))]


def _cut(order: Integers, size: int) -> list[Integers]:
    return [order[start : start + size] for start in range(0, len(order), size)]
