"""Side networks with a decoder in their late route: queries, positions, what each block reads, and bad input."""

import copy
import pickle

import numpy as np
import pytest
from op_harness import OpCase
from small import FEATURES, HEADS, mask_of, same_bits, taps_of
from test_layers import MORE, T5, weights_of

import sherl
from sherl import _core, losses
from sherl.blocks import families

pytestmark = pytest.mark.core

QUERIES, CLASSES, TOKENS = 5, 3, 7
layers = sherl.TransformerLayer


def rows_of(*shape, seed=0):
    return np.random.default_rng([seed, 21]).standard_normal(shape, dtype=np.float32)


def detr_layers(seed=0, decoders=2, **settings):
    encoder = layers.from_detr(weights_of(families.DETR_ENCODER, seed=seed), HEADS, **settings)
    return [encoder, *(layers.from_detr(weights_of(families.DETR_DECODER, memory=True, seed=seed + number + 1), HEADS,
                                        decoder=True, **settings) for number in range(decoders))]


def frozen_norm():
    return sherl.LayerNorm.from_weights(1 + rows_of(FEATURES, seed=1) / 4, rows_of(FEATURES, seed=2) / 4)


def late_of(positions=None, queries=None, trainable=False):
    encoder, *decoder = detr_layers(trainable=trainable)
    queries = queries or sherl.Queries.from_tables(positions=rows_of(QUERIES, FEATURES, seed=3))
    return [positions or sherl.Positions(FEATURES), encoder, queries, *decoder, frozen_norm()]


def network_of(late=None, head=None, seed=0, **settings):
    """A network with random weights in every place, so that no gradient is zero."""
    net = sherl.SideNetwork(sherl.MTSA.detr(FEATURES, taps=3, hidden=8), late_of() if late is None else late,
                            head or sherl.Detector(FEATURES, CLASSES, hidden=12, align=4), seed=seed, **settings)
    generator = np.random.default_rng([seed, 22])
    net.load_state_dict({name: value + 0.1 * generator.standard_normal(value.shape, dtype=np.float32)
                         for name, value in net.state_dict().items()})
    return net


def given_of(samples=12, tokens=TOKENS):
    """Taps, and rows of positions behind them."""
    return [*taps_of(samples, tokens), rows_of(samples, tokens, FEATURES, seed=4)]


def targets_of(samples=12):
    generator = np.random.default_rng(5)
    boxes = generator.uniform(0.2, 0.5, (samples, 2, 4))
    return losses.box_targets(boxes, generator.integers(0, CLASSES, (samples, 2)))


def composed(net, given, mask=None):
    """The outputs of a network by its blocks alone, and what each of them read."""
    blocks, (encoder, queries, *decoder, norm) = [], net.late[1:]
    x = net.early(given[:3], mask=mask)
    blocks.append((net.early, {"taps": given[:3], "mask": mask}))
    blocks.append((encoder, {"x": x, "positions": given[3], "mask": mask}))
    memory = encoder(x, mask, positions=given[3])
    table = queries._frozen["positions"] if queries._frozen else queries.state_dict()["positions"]
    places = np.broadcast_to(table, (len(x), *table.shape))
    x = np.zeros_like(places)
    for layer in decoder:
        read = {"x": x, "positions": places, "memory": memory, "memory_positions": given[3], "memory_mask": mask}
        blocks.append((layer, read))
        x = layer(**read)
    blocks += [(norm, {"x": x}), (net.head, {"x": norm(x)})]
    return net.head(norm(x)), blocks


# ---- The op ----


@pytest.mark.parametrize("role", ["trainable", "frozen"])
def test_a_table_is_there_for_every_sample(role):
    table, x = rows_of(3, 4).astype(np.float64), rows_of(9, 4, seed=1).astype(np.float64)

    def build(graph, values, known):
        return graph.multiply(values["x"], graph.table(known["table"], graph.value_space(values["x"])))

    case = OpCase(build, lengths={"tokens": [3, 3, 3]}, inputs={"x": ("tokens", x)}, output=("tokens", 4),
                  parameters={"table": (role, table)})
    np.testing.assert_allclose(case.forward(), x * np.tile(table, (3, 1)), rtol=1e-12)
    cotangent = rows_of(9, 4, seed=2).astype(np.float64)
    for found, expected in zip(case.gradient(cotangent), case.finite_differences(cotangent)):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, atol=1e-7)


def test_a_fixed_space_needs_no_offsets():
    store = _core.Parameters()
    graph = _core.Graph(store, False)
    tokens = graph.space("tokens")
    x = graph.input("x", tokens, 4)
    table = graph.parameter("table", (3, 4))
    graph.output(graph.table(table, graph.fixed_space("queries", 3)))
    graph.output(graph.pool(x, "mean"))
    program = graph.compile(False)
    store.array("table")[...] = values = rows_of(3, 4)
    rows, means, given = np.empty((6, 4), np.float32), np.empty((2, 4), np.float32), rows_of(5, 4)
    program.forward(2, [None, np.array([0, 2, 5])], [(given, None)], [(rows, None), (means, None)])
    np.testing.assert_array_equal(rows, np.tile(values, (2, 1)))


def test_a_table_of_another_length_than_a_sample_fails_the_run():
    case = OpCase(lambda graph, values, known: graph.add(values["x"], graph.table(known["table"], 1)),
                  lengths={"tokens": [3, 2]}, inputs={"x": ("tokens", rows_of(5, 4))}, output=("tokens", 4),
                  parameters={"table": ("trainable", rows_of(3, 4))})
    with pytest.raises(ValueError, match="shape"):
        case.forward()


def test_core_refuses_wrong_tables():
    graph = _core.Graph(_core.Parameters(), False)
    with pytest.raises(ValueError, match="rows must be"):
        graph.fixed_space("queries", 0)
    table = graph.parameter("table", (3, 4))
    with pytest.raises(ValueError, match="no row space 0 of segments"):
        graph.table(table, 0)
    graph = _core.Graph(_core.Parameters(), False)
    with pytest.raises(ValueError, match="not a parameter"):
        graph.table(7, graph.fixed_space("queries", 2))


# ---- What a network computes ----


@pytest.mark.parametrize("masked", [False, True])
def test_outputs_are_those_of_the_blocks_one_after_the_other(masked):
    net, given, mask = network_of(), given_of(), mask_of() if masked else None
    outputs = net.forward(given, mask)
    assert outputs.shape == (12, QUERIES, CLASSES + 1 + 4 + 4)
    np.testing.assert_allclose(outputs, composed(net, given, mask)[0], atol=2e-5)


@pytest.mark.parametrize("trainable", [False, True])
def test_gradients_are_those_of_the_blocks_one_after_the_other(trainable):
    queries = sherl.Queries.from_tables(positions=rows_of(QUERIES, FEATURES, seed=3), trainable=True)
    net, given, mask = network_of(late_of(queries=queries, trainable=trainable)), given_of(), mask_of()
    cotangent = rows_of(12, QUERIES, net.head.out_features, seed=6)
    outputs, gradients = net.vjp(given, cotangent, mask, taps_gradient=True)
    np.testing.assert_allclose(outputs, net.forward(given, mask), atol=1e-5)
    names = ["early.", "late.1.", "late.3.", "late.4.", "late.5.", "head."]
    expected = dict.fromkeys(["late.2.positions", "memory", "places"], 0.0)
    _, blocks = composed(net, given, mask)
    for name, (block, read) in reversed(list(zip(names, blocks))):
        if name == "late.1.":
            cotangent = expected.pop("memory")
        extra = {"taps_gradient": True} if name == "early." else {}
        _, found = block.vjp(cotangent=cotangent, **read, **extra)
        cotangent = found.pop("x", None)
        if name in ("late.3.", "late.4."):
            expected["late.2.positions"] = expected["late.2.positions"] + found.pop("positions").sum(axis=0)
            expected["memory"] = expected["memory"] + found.pop("memory")
            expected["places"] = expected["places"] + found.pop("memory_positions")
        elif name == "late.1.":
            expected["places"] = expected["places"] + found.pop("positions")
        expected.update({name + part: value for part, value in found.items()})
    expected["tap3"] = expected.pop("places")
    expected.update({f"tap{number}": expected.pop(f"early.tap{number}") for number in range(3)})
    expected["tap2"] = expected["tap2"] + expected.pop("early.last")
    assert gradients.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(gradients[name], value, atol=2e-4 * max(1, np.abs(value).max()), err_msg=name)


@pytest.mark.usefixtures("double_core")
def test_gradients_of_tables_against_finite_differences():
    late = late_of(sherl.Positions(FEATURES, TOKENS), sherl.Queries(FEATURES, QUERIES, start=True))
    net, taps = network_of(late), [tap.astype(np.float64) for tap in taps_of(3)]
    cotangent = rows_of(3, QUERIES, net.head.out_features, seed=6).astype(np.float64)
    _, gradients = net.vjp(taps, cotangent)
    for name in ("late.0.table", "late.2.positions", "late.2.start"):
        state = net.state_dict()
        for place in ((0, 0), (2, 5), (-1, -1)):
            values = []
            for step in (1e-5, -1e-5):
                moved = state[name].copy()
                moved[place] += step
                net.load_state_dict({**state, name: moved})
                values.append((net.forward(taps) * cotangent).sum())
            net.load_state_dict(state)
            assert gradients[name][place] == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-4, abs=1e-7), name


def test_ragged_features_and_padded_arrays_agree():
    net, given, mask = network_of(), given_of(), mask_of()
    features = sherl.Features([tap[mask] for tap in given], mask.sum(axis=1))
    assert same_bits(net.forward(features), net.forward(given, mask))
    cotangent = rows_of(12, QUERIES, net.head.out_features, seed=6)
    outputs, gradients = net.vjp(features, cotangent, taps_gradient=True)
    others = net.vjp(given, cotangent, mask, taps_gradient=True)
    assert same_bits(outputs, others[0])
    np.testing.assert_array_equal(gradients["tap3"].taps[0], others[1]["tap3"][mask])


def test_a_table_of_positions_is_the_same_as_rows_that_each_sample_brings():
    table = rows_of(TOKENS, FEATURES, seed=8)
    with_table = network_of(late_of(sherl.Positions.from_table(table)))
    with_rows = network_of()
    rows = np.broadcast_to(table, (12, *table.shape))
    np.testing.assert_array_equal(with_table.forward(taps_of()), with_rows.forward([*taps_of(), rows]))


def test_a_trained_table_of_positions_has_the_sum_of_the_gradients_of_the_rows():
    table = rows_of(TOKENS, FEATURES, seed=8)
    net = network_of(late_of(sherl.Positions.from_table(table, trainable=True)))
    other = network_of()
    other.load_state_dict({name: value for name, value in net.state_dict().items() if name != "late.0.table"})
    rows = np.broadcast_to(net.state_dict()["late.0.table"], (12, *table.shape))
    cotangent = rows_of(12, QUERIES, net.head.out_features, seed=6)
    found = net.vjp(taps_of(), cotangent)[1]["late.0.table"]
    expected = other.vjp([*taps_of(), rows], cotangent, taps_gradient=True)[1]["tap3"].sum(axis=0)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_on_images_of_one_size():
    generator = np.random.default_rng(0)
    taps = [generator.standard_normal((6, side, side, width), dtype=np.float32)
            for side, width in ((8, 8), (4, FEATURES))]
    early = sherl.MTSA.resnet([8, FEATURES], taps=2, hidden=8, pool=[2, 1])
    late = late_of(sherl.Positions.from_table(rows_of(16, FEATURES)))
    net = sherl.SideNetwork(early, late, sherl.Detector(FEATURES, CLASSES))
    x, places = early(taps).reshape(6, 16, FEATURES), np.broadcast_to(rows_of(16, FEATURES), (6, 16, FEATURES))
    memory, queries = late[1](x, positions=places), np.broadcast_to(late[2]._frozen["positions"],
                                                                    (6, QUERIES, FEATURES))
    y = np.zeros_like(queries)
    for layer in late[3:5]:
        y = layer(y, positions=queries, memory=memory, memory_positions=places)
    np.testing.assert_allclose(net.forward(taps), net.head(late[5](y)), atol=2e-5)
    wider = [np.concatenate([tap, tap], axis=2) for tap in taps]
    with pytest.raises(ValueError, match=r"must have the 16 rows that the table of late\[0\] has, got 32 in sample 0"):
        net.forward(wider)


def t5_network(start, pool="first"):
    encoder = sherl.T5Block.from_t5(weights_of(families.T5_ENCODER, **T5), HEADS)
    decoder = MORE["t5 decoder"]()
    norm = sherl.RMSNorm.from_weights(1 + rows_of(FEATURES) / 4)
    late = [encoder, norm, sherl.Queries.from_tables(start=start), decoder, norm]
    return sherl.SideNetwork(sherl.MTSA.t5(FEATURES, taps=3, hidden=8), late, sherl.Classifier(FEATURES, 2, pool=pool))


@pytest.mark.parametrize("queries", [1, 4])
def test_a_decoder_of_t5_reads_one_row_out(queries):
    """With one selected row the cross-attention takes another path, through the memory itself."""
    net, taps, mask = t5_network(rows_of(queries, FEATURES)), taps_of(), mask_of()
    encoder, norm, starts, decoder, _ = net.late
    memory = norm(encoder(net.early(taps, mask=mask), mask), mask)
    x = np.broadcast_to(starts._frozen["start"], (12, queries, FEATURES))
    expected = net.head(norm(decoder(x, memory=memory, memory_mask=mask)))
    np.testing.assert_allclose(net.forward(taps, mask), expected, atol=2e-5)


# ---- Training ----


def test_training_lowers_the_loss_and_moves_trained_queries():
    late = late_of(queries=sherl.Queries(FEATURES, QUERIES))
    net = network_of(late, head=sherl.Detector(FEATURES, CLASSES))
    before = net.state_dict()
    assert np.std(before["late.2.positions"]) == pytest.approx(1, abs=0.2)
    history = net.fit(given_of(), targets_of(), mask_of(), loss=losses.detection(CLASSES), epochs=15, batch_size=4,
                      learning_rate=3e-3, validation=(given_of(), targets_of(), mask_of()), progress=False)
    assert history.epochs[-1]["loss"] < 0.7 * history.epochs[0]["loss"]
    assert history.epochs[-1]["validation_loss"] < history.epochs[0]["validation_loss"]
    assert not np.array_equal(net.state_dict()["late.2.positions"], before["late.2.positions"])


def test_token_labels_are_those_of_the_queries():
    net = network_of(head=sherl.TokenClassifier(FEATURES, CLASSES))
    given, labels = given_of(), np.random.default_rng(0).integers(0, CLASSES, (12, QUERIES))
    labels[3, 2] = -100
    loss, _ = net.loss_and_gradients(given, labels, mask_of())
    logits = net.forward(given, mask_of()).astype(np.float64)
    shares = np.log(np.exp(logits).sum(axis=2)) - np.take_along_axis(logits, np.maximum(labels, 0)[..., None], 2)[...,
                                                                                                                  0]
    assert loss == pytest.approx(shares[labels >= 0].mean(), rel=1e-5)
    assert net.predict(given).shape == (12, QUERIES)
    assert 0 <= net.evaluate(given, labels, mask_of())["accuracy"] <= 1
    history = net.fit(given, labels, mask_of(), epochs=10, batch_size=5, learning_rate=1e-2, progress=False)
    assert history.epochs[-1]["loss"] < history.epochs[0]["loss"]
    with pytest.raises(ValueError, match=r"labels must have shape \(batch, tokens\) = \(12, 5\), got \(12, 7\)"):
        net.loss_and_gradients(given, np.zeros((12, TOKENS), int))


def test_steps_are_those_of_fit():
    target, given = targets_of(), given_of()
    nets = [network_of(head=sherl.Detector(FEATURES, CLASSES)) for _ in range(2)]
    step = nets[0].stepper(learning_rate=1e-3, loss=losses.detection(CLASSES))
    loss = step(given, target)
    history = nets[1].fit(given, target, loss=losses.detection(CLASSES), epochs=1, batch_size=12, schedule="constant",
                          warmup=0, clip_norm=None, no_decay=(), learning_rate=1e-3, progress=False)
    assert loss == pytest.approx(history.epochs[0]["loss"], rel=1e-5)
    for name, value in nets[0].state_dict().items():
        np.testing.assert_allclose(nets[1].state_dict()[name], value, atol=1e-5)


def test_bits_do_not_depend_on_threads(keep_threads):
    queries = sherl.Queries.from_tables(positions=rows_of(QUERIES, FEATURES), trainable=True)
    net, given, mask = network_of(late_of(queries=queries)), given_of(60, 9), mask_of(60, 9)
    cotangent, found = rows_of(60, QUERIES, net.head.out_features), []
    for threads in (1, 2, 3):
        sherl.set_num_threads(threads)
        found.append(net.vjp(given, cotangent, mask))
    assert all(same_bits(out, found[0][0]) and same_bits(gradients, found[0][1]) for out, gradients in found)


def test_memory_is_told_and_bounded():
    net = network_of(head=sherl.TokenClassifier(FEATURES, CLASSES))
    plan = net.memory_plan(batch_size=64, tokens=50)
    assert plan.workspace < net.memory_plan(batch_size=64, tokens=400).workspace
    less = net.memory_plan(batch_size=64, tokens=50,
                           memory_budget=int(0.7 * (plan.total - plan.frozen_weights - plan.blas)))
    assert less.workspace + less.gradients < plan.workspace + plan.gradients
    labels = np.random.default_rng(0).integers(0, CLASSES, (64, QUERIES))
    kept = plan.parameters + plan.gradients + plan.optimizer + plan.workspace
    net.fit(given_of(64, 50), labels, epochs=1, batch_size=64, memory_budget=int(0.7 * kept), progress=False)


def test_a_sweep_gives_what_each_network_gives_alone():
    def networks():
        return {"few": network_of(late_of(queries=sherl.Queries(FEATURES, 3)),
                                  sherl.Classifier(FEATURES, 2, pool="max"), 1),
                "many": network_of(late_of(), sherl.Classifier(FEATURES, 2, pool="first"), 2),
                "rows": network_of(late_of(), sherl.TokenClassifier(FEATURES, 2), 3),
                "none": network_of(late_of()[:2], sherl.Classifier(FEATURES, 2, pool="mean"), 4)}

    given, mask, generator = given_of(20), mask_of(20), np.random.default_rng(0)
    labels = {"rows": generator.integers(0, 2, (20, QUERIES))}
    own = {name: labels.get(name, generator.integers(0, 2, 20)) for name in networks()}
    settings = {"epochs": 2, "batch_size": 8, "learning_rate": 1e-2, "progress": False}
    swept, alone = networks(), networks()
    sherl.sweep(given, None, {name: {"network": net, "labels": own[name]} for name, net in swept.items()}, mask=mask,
                **settings)
    for name, net in alone.items():
        net.fit(given, own[name], mask, **settings)
        assert same_bits(net.state_dict(), swept[name].state_dict()), name


# ---- Saving, copies, tables ----


def test_saved_and_loaded_by_reference(tmp_path):
    net, given = network_of(), given_of()
    net.save_pretrained(tmp_path / "net")
    offered = late_of()
    again = sherl.SideNetwork.from_pretrained(tmp_path / "net", backbone=offered[1:])
    assert again.late[2] is offered[2] and again.late[-1] is offered[-1]
    assert same_bits(again.forward(given), net.forward(given))
    assert "late.2" not in " ".join(net.state_dict())
    with pytest.raises(ValueError, match="no layer of backbone has the weights that late layer 2 was trained with"):
        sherl.SideNetwork.from_pretrained(tmp_path / "net", backbone=[*offered[1:2], *offered[3:]])


def test_trained_tables_are_saved(tmp_path):
    late = late_of(sherl.Positions(FEATURES, TOKENS), sherl.Queries(FEATURES, QUERIES, start=True))
    net = network_of(late)
    net.save_pretrained(tmp_path / "net")
    again = sherl.SideNetwork.from_pretrained(tmp_path / "net", backbone=late_of())
    assert {"late.0.table", "late.2.positions", "late.2.start"} <= net.state_dict().keys()
    assert same_bits(again.forward(taps_of()), net.forward(taps_of()))


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
def test_copies_are_equal(trained, copied):
    queries = sherl.Queries(FEATURES, QUERIES, start=True) if trained else None
    net = network_of(late_of(queries=queries))
    assert same_bits(copied(net).forward(given_of()), net.forward(given_of()))


def test_summary_counts_frozen_tables():
    net = network_of()
    assert "Queries" in net.summary()
    frozen = net.num_parameters(trainable_only=False) - net.num_parameters()
    assert frozen == sum(block.num_parameters(trainable_only=False) for block in net.late)
    assert net.late[2].num_parameters(trainable_only=False) == QUERIES * FEATURES and not net.late[2].trainable


def test_explanations_leave_positions_aside():
    net, given, mask = network_of(), given_of(), mask_of()
    expected = sherl.SideNetwork(copy.deepcopy(net.early), [], sherl.Classifier(FEATURES, 2)).explain(given[:3], mask)
    np.testing.assert_array_equal(net.explain(given, mask).weights, expected.weights)


def test_bfloat16_is_close():
    if not _core.config()["bfloat16"]:
        with pytest.raises(ValueError, match="bfloat16"):
            network_of(late_dtype="bfloat16")
        return
    found = [network_of(late_dtype=kind).forward(given_of()) for kind in ("float32", "bfloat16")]
    assert 0 < np.abs(found[0] - found[1]).max() < 5e-2 * np.abs(found[0]).max()


# ---- Refusals ----


ENCODER, DECODER, *_ = detr_layers()
WRONG = {
    "positions that nobody gives": ([ENCODER], r"late\[0\] must read x alone.* reads positions, which Positions"),
    "a memory that nobody gives": ([sherl.Positions(FEATURES), DECODER],
                                   r"late\[1\].* reads memory, which Queries would"),
    "no positions of the memory": (
        [sherl.Queries(FEATURES, 2), DECODER], r"late\[1\].* reads memory_positions, which Positions before",
    ),
    "no positions of the queries": (
        [sherl.Positions(FEATURES), sherl.Queries(FEATURES, 2, positions=False, start=True), DECODER],
        r"late\[2\].* reads positions",
    ),
    "two decoders": ([sherl.Queries(FEATURES, 2), sherl.Queries(FEATURES, 2)],
                     r"late\[1\] must not be Queries once more"),
    "positions behind queries": ([sherl.Queries(FEATURES, 2), sherl.Positions(FEATURES)],
                                 r"late\[1\] must be the only"),
    "positions twice": ([sherl.Positions(FEATURES), sherl.Positions(FEATURES)],
                        r"late\[1\] must be the only Positions"),
    "positions of another width": ([sherl.Positions(8)],
                                   r"late\[0\] must have the 32 features that early gives, got 8"),
    "queries of another width": ([sherl.Queries(8, 2)], "head must have the 8 features that late"),
    "positions that nobody reads": ([sherl.Positions(FEATURES)],
                                    r"late\[0\] gives positions, which no layer behind it"),
    "a memory that nobody reads": ([sherl.Queries(FEATURES, 2, positions=False, start=True)],
                                   r"late\[0\] gives a memory"),
    "positions of a memory that nobody reads": (
        [sherl.Positions(FEATURES), sherl.Queries(FEATURES, 2, positions=False, start=True), MORE["t5 decoder"]()],
        r"late\[0\] gives positions of the memory, which",
    ),
    "a norm of another width": ([sherl.LayerNorm(8)], r"late\[0\] must have the 32 features that early gives, got 8"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_networks_refuse(name):
    late, message = WRONG[name]
    with pytest.raises(ValueError, match=message):
        sherl.SideNetwork(sherl.MTSA(3, FEATURES, 8), late, sherl.Detector(FEATURES, 2))


def test_a_head_that_reads_given_rows_is_refused():
    with pytest.raises(ValueError, match="head must not read rows by position behind Queries"):
        sherl.SideNetwork(sherl.MTSA(3, FEATURES, 8), late_of(), sherl.Classifier(FEATURES, 2, pool="position"))


def test_wrong_rows_are_refused():
    net, given = network_of(), given_of()
    with pytest.raises(ValueError, match="taps must be 3 arrays and one of position rows, got 3"):
        net.forward(given[:3])
    with pytest.raises(ValueError, match=r"taps\[3\], the position rows, must have 32 channels, got 8"):
        net.forward([*given[:3], given[3][:, :, :8]])
    with pytest.raises(ValueError, match=r"taps\[3\], the position rows, must have a row for each row"):
        net.forward([*given[:3], given[3][:, 0]])
    with pytest.raises(ValueError, match=r"cotangent must have the output's shape \(12, 5, 12\), got \(12, 7, 12\)"):
        net.vjp(given, np.zeros((12, TOKENS, 12), np.float32))
    table = network_of(late_of(sherl.Positions(FEATURES, 4)))
    with pytest.raises(ValueError, match=r"samples must have the 4 rows that the table of late\[0\] has, got 7"):
        table.forward(taps_of())
    with pytest.raises(ValueError, match=r"late\[0\] must have a table, since images"):
        sherl.SideNetwork(sherl.MTSA.resnet([8, FEATURES], taps=2, hidden=8, pool=[2, 1]), late_of(), net.head)


@pytest.mark.parametrize(("make", "kind", "message"), [
    (lambda: sherl.Queries(8, 0), ValueError, "count"),
    (lambda: sherl.Queries(8, 2, positions=False), ValueError, "positions or start must be True"),
    (lambda: sherl.Queries.from_tables(), ValueError, "positions or start must be given"),
    (lambda: sherl.Queries.from_tables(np.ones(3, np.float32)), ValueError,
     r"positions must have shape \(rows, features\)"),
    (lambda: sherl.Queries.from_tables(rows_of(2, 3), rows_of(3, 3)), ValueError,
     r"start must have the shape of positions"),
    (lambda: sherl.Positions.from_table(np.full((2, 3), np.nan, np.float32)), ValueError,
     "table must hold finite numbers"),
    (lambda: sherl.LayerNorm.from_weights(rows_of(4), rows_of(3)), ValueError,
     r"bias must have shape \(4,\), got \(3,\)"),
    (lambda: sherl.RMSNorm.from_weights(rows_of(4, 4)), ValueError,
     r"weight must have shape \(features,\), got \(4, 4\)"),
])  # fmt: skip
def test_blocks_refuse(make, kind, message):
    with pytest.raises(kind, match=message):
        make()
