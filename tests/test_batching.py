"""Batches of an epoch: every sample once, by the seed, among others of its length."""

import numpy as np
import pytest

from sherl.training.batching import epoch_batches

LENGTHS = np.random.default_rng(0).integers(1, 129, 1000)


@pytest.mark.parametrize("bucket_by_length", [True, False])
@pytest.mark.parametrize(("samples", "batch_size"), [(1000, 32), (1000, 7), (5, 32), (1, 1), (64, 32)])
def test_every_sample_comes_once_in_batches_of_the_size(samples, batch_size, bucket_by_length):
    batches = epoch_batches(LENGTHS[:samples], batch_size, 0, 0, bucket_by_length)
    assert sorted(np.concatenate(batches)) == list(range(samples))
    assert sorted(map(len, batches))[1:] == [batch_size] * (len(batches) - 1)


@pytest.mark.parametrize("bucket_by_length", [True, False])
def test_seed_and_epoch_decide_the_order(bucket_by_length):
    orders = {np.concatenate(epoch_batches(LENGTHS, 32, seed, epoch, bucket_by_length)).tobytes()
              for seed in (0, 1) for epoch in (0, 1) for _ in range(2)}
    assert len(orders) == 4


def test_batches_hold_samples_of_about_one_length():
    spread = lambda bucket: np.mean([np.ptp(LENGTHS[batch]) for batch in epoch_batches(LENGTHS, 32, 0, 0, bucket)])
    assert spread(True) < 0.2 * spread(False)


def test_batches_of_long_samples_do_not_come_in_order():
    means = [LENGTHS[batch].mean() for batch in epoch_batches(LENGTHS, 32, 0, 0, True)]
    assert abs(np.corrcoef(means, range(len(means)))[0, 1]) < 0.6
