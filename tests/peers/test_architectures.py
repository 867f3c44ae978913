"""The benchmarks of other architectures at tiny sizes: agreement of sherl with each peer, and the command line."""

import dataclasses

import numpy as np
import pytest
from benchmarks import architecture, compare, suite
from small import same_bits

ARCHITECTURES = pytest.mark.parametrize("made", suite.QUICK.architectures, ids=lambda made: made.title)


@ARCHITECTURES
def test_loss_and_gradients_agree_with_every_peer(made):
    reference = made.build(made.check_problem).loss_and_gradients()
    for name, peer in made.peers.items():
        gradients = peer.build(made.check_problem, *peer.arguments).loss_and_gradients()
        found = compare.agreement(reference, gradients, made.vanishing)
        compare.require_agreement(name, dataclasses.replace(peer, worst_tolerance=1e-3), found)


@ARCHITECTURES
def test_a_step_follows_its_loss_and_is_the_same_on_any_number_of_threads(made):
    losses, states = [], []
    for threads in (1, 2):
        side = made.build(dataclasses.replace(made.problem, threads=threads))  # which sets the threads
        loss, _ = side.loss_and_gradients()  # moves running statistics
        losses.append([side.step() for _ in range(3)])
        states.append(side.network.state_dict())
    assert losses[0] == losses[1] and losses[0][0] == pytest.approx(loss, rel=1e-5) and losses[0][2] < losses[0][0]
    assert same_bits(*states)


def test_vanishing_gradients_count_beside_all_others():
    actual = {"weight": np.array([3.0, 4.0]), "bias": np.array([1e-6])}
    expected = {"weight": actual["weight"], "bias": np.array([-1e-6])}
    assert compare.agreement((1.0, actual), (1.0, expected))[3] == pytest.approx(2)
    assert compare.agreement((1.0, actual), (1.0, expected), ("b*",))[3] == pytest.approx(4e-7)


def test_command_prints_agreement_time_and_memory(capsys, monkeypatch):
    made = suite.QUICK.architectures[0]
    architecture.command(made, "seq2seq", ["--batch", "2", "--repeats", "2"])
    printed = capsys.readouterr().out
    assert "2 pairs of 24 and 8 tokens" in printed and "agreement with PyTorch: loss" in printed
    assert "PyTorch / sherl" in printed and "MiB" in printed
    with pytest.raises(SystemExit):
        architecture.command(made, "seq2seq", ["--taps", "0"])
    monkeypatch.setattr(architecture, "compare", disagree)
    with pytest.raises(SystemExit, match="error: apart"):
        architecture.command(made, "seq2seq", ["--batch", "2"])


def disagree(*_, **__):
    raise compare.Disagreement("apart")
