"""Replicas as nodes in one process: MirroredStrategy over four virtual devices trains as the formulas say."""

import json

import numpy as np
import pytest

from keras_lsb import _keras, callbacks, distribute, optimizers, schedules, topology
from keras_lsb.distribute import nodes as nodes_of
from tests.decentralized_problem import (
    COLUMNS,
    METHODS,
    MOMENTUM,
    NODES,
    SETTINGS,
    SHARE,
    START,
    TOPOLOGIES,
    X,
    Y,
    batches,
    by_hand,
    flat,
    network,
    train,
)
from tests.support import TENSORFLOW, assert_close, keras, keras3_only, tensorflow_only, to_numpy, with_slots
from tests.test_backup import Stop, StopIn
from tests.test_replicas import mirrored

if TENSORFLOW:
    import tensorflow as tf

pytestmark = tensorflow_only("tf.distribute.MirroredStrategy")

SAME = 5e-6  # float32 over 50 steps; weights are about 1


def weights_of_nodes(model) -> np.ndarray:
    """(nodes, parameters)."""
    values = [_keras.native(variable).values for variable in model.trainable_variables]
    return np.stack([flat([value[node].numpy() for value in values]) for node in range(NODES)])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", TOPOLOGIES)
def test_every_node_has_the_weights_of_the_formulas(name, method):
    graph = TOPOLOGIES[name](NODES)
    found = weights_of_nodes(train(mirrored(NODES), graph, method))
    expected = by_hand(graph, method)
    assert np.ptp(expected, 0).max() > 1e4 * SAME or name == "complete", "nodes that agree show nothing"
    assert_close(found, expected, SAME)


@pytest.mark.parametrize("setting", SETTINGS)
def test_decay_and_clipping_are_local_and_come_before_the_exchange(setting):
    graph = topology.ring(NODES)
    found = weights_of_nodes(train(mirrored(NODES), graph, **SETTINGS[setting]))
    expected = by_hand(graph, setting=setting)
    if setting != "plain":
        assert np.abs(expected - by_hand(graph)).max() > 1e3 * SAME
    assert_close(found, expected, SAME)


def test_the_paper_matrix_is_the_one_of_the_graph():
    """by_hand takes matrices from the package; here is one that is not."""
    third = np.array([[1, 1, 0, 1], [1, 1, 1, 0], [0, 1, 1, 1], [1, 0, 1, 1]]) / 3
    assert_close(topology.ring(NODES).matrix(), third, 1e-15)


def sgd_like(optimizer, steps=30):
    keras.utils.set_random_seed(3)
    model = network()
    model.compile(optimizer, "mse")
    model.fit(batches(), epochs=1, steps_per_epoch=steps, shuffle=False, verbose=0)
    return flat(model.get_weights())


@pytest.mark.parametrize("cls", METHODS.values())
def test_one_replica_is_sgd_with_momentum_bit_for_bit(cls):
    def warmed_up():
        recipe = keras.optimizers.schedules.InverseTimeDecay(0.03, 1.0, 0.5)
        sizes = {"base_batch_size": 16, "batch_size": 64, "steps_per_epoch": 10}
        return schedules.LEGW(recipe, warmup_epochs=0.2, **sizes)

    found = sgd_like(cls(warmed_up(), momentum=MOMENTUM))
    expected = sgd_like(keras.optimizers.SGD(warmed_up(), momentum=MOMENTUM))
    assert np.abs(found - flat(START)).max() > 0.1
    np.testing.assert_array_equal(found, expected)


def test_complete_graph_is_momentum_sgd_on_the_mean_gradient():
    found = weights_of_nodes(train(mirrored(NODES), topology.complete(NODES), learning_rate=0.05))
    expected = sgd_like(keras.optimizers.SGD(0.05, momentum=MOMENTUM), 50)
    assert_close(found, np.tile(expected, (NODES, 1)), SAME)


def test_learning_rate_zero_moves_nothing():
    model = train(mirrored(NODES), topology.ring(NODES), learning_rate=0.0, steps=5)
    np.testing.assert_array_equal(weights_of_nodes(model), np.tile(flat(START), (NODES, 1)))


def normalized_network(rate=0.02):
    """With batch normalization and another type of layer."""
    model = keras.Sequential(
        [
            keras.layers.Input((COLUMNS,)),
            keras.layers.Dense(6, activation="tanh"),
            keras.layers.BatchNormalization(momentum=0.7),
            keras.layers.Dense(1),
        ]
    )
    model.compile(optimizers.DecentLaM(rate, momentum=MOMENTUM), "mse")
    return with_slots(model)


def fit(model, epochs=2, **arguments):
    return model.fit(batches(), epochs=epochs, steps_per_epoch=3, shuffle=False, verbose=0, **arguments)


def state(model) -> np.ndarray:
    """Everything that nodes have of their own: (nodes, values)."""
    columns = [variable.values for variable in nodes_of.node_variables(model)]
    return np.stack([flat([column[node].numpy() for column in columns]) for node in range(NODES)])


@pytest.fixture
def model():
    with distribute.decentralized(mirrored(NODES), topology.ring(NODES)):
        made = normalized_network()
    fit(made)
    return made


def test_reading_uses_the_average_and_leaves_the_nodes_alone(model, tmp_path):
    before = state(model)
    assert np.ptp(before, 0).max() > 1e-3
    mean = before.mean(0)
    with distribute.consensus(model):
        assert_close(state(model), np.tile(mean, (NODES, 1)), 1e-6)
        with distribute.consensus(model):
            assert_close(state(model)[0], mean, 1e-6)
    np.testing.assert_array_equal(state(model), before)

    path = str(tmp_path / "model.keras")
    model.save(path)
    loaded = keras.models.load_model(path)
    inputs, targets = X.reshape(-1, COLUMNS), Y.reshape(-1, 1)
    assert_close(loaded.predict(inputs, verbose=0), model.predict(inputs, verbose=0), 1e-6)
    assert_close(loaded.evaluate(inputs, targets, verbose=0), model.evaluate(inputs, targets, verbose=0), 1e-6)
    moving = [np.asarray(value) for value in loaded.layers[1].get_weights()]
    assert_close(flat(moving[2:]), state(model)[:, -2 * 6 :].mean(0), 1e-6)
    displacements = [to_numpy(slot) for slot in loaded.optimizer._slots["displacement"]]
    count = len(flat(displacements))
    assert_close(flat(displacements), mean[-2 * 6 - count : -2 * 6], 1e-6)
    model.save_weights(str(tmp_path / "model.weights.h5"))
    np.testing.assert_array_equal(state(model), before)


def test_an_error_while_reading_gives_the_nodes_their_weights_back(model):
    before = state(model)
    with pytest.raises(RuntimeError, match="no reason"), distribute.consensus(model):
        raise RuntimeError("no reason")
    np.testing.assert_array_equal(state(model), before)


def test_consensus_of_an_ordinary_model_changes_nothing():
    model = network()
    model.compile("sgd", "mse")
    with distribute.consensus(model) as same:
        assert same is model


def test_logs(tmp_path):
    with distribute.decentralized(mirrored(NODES), topology.ring_matchings(NODES)):
        model = normalized_network()
    log = tmp_path / "log.csv"
    history = fit(model, callbacks=[callbacks.Consensus(), keras.callbacks.CSVLogger(log)]).history
    rows = weights_of_nodes(model)
    expected = topology.consensus_distance(rows)
    assert expected > 1e-5
    assert history["consensus_distance"][-1] == pytest.approx(expected, rel=1e-4)
    assert history["bytes_sent"] == [4.0 * rows.shape[1]] * 2
    assert log.read_text().splitlines()[0].split(",")[1:3] == ["bytes_sent", "consensus_distance"]


def test_consensus_callback_needs_nodes():
    model = network()
    model.compile("sgd", "mse")
    with pytest.raises(ValueError, match="decentralized"):
        fit(model, callbacks=[callbacks.Consensus()])


def made_for(nodes, seed=3, graph=topology.ring):
    keras.utils.set_random_seed(seed)
    with distribute.decentralized(mirrored(nodes), graph(nodes)):
        return normalized_network()


def test_resumed_nodes_go_on_with_their_own_weights(tmp_path):
    def keep():
        return callbacks.BackupAndRestore(tmp_path / "backup", delete_checkpoint=False)

    whole = made_for(NODES)
    fit(whole, epochs=4)
    with pytest.raises(Stop):
        fit(made_for(NODES), epochs=4, callbacks=[keep(), StopIn(2)])
    resumed = made_for(NODES, seed=4)
    fit(resumed, epochs=4, callbacks=[keep()])
    np.testing.assert_array_equal(state(resumed), state(whole))
    names = sorted(path.name for path in (tmp_path / "backup").iterdir())
    assert names == ["backup.json", *(f"epoch-4.node-{node}.npz" for node in range(NODES)), "epoch-4.weights.h5"]


def test_another_number_of_nodes_is_refused_with_the_way_to_go_on(tmp_path):
    def keep(folder="backup"):
        return callbacks.BackupAndRestore(tmp_path / folder, delete_checkpoint=False)

    four = made_for(NODES)
    fit(four, callbacks=[keep()])
    two = made_for(2, seed=4, graph=topology.complete)
    with pytest.raises(ValueError, match="is of 4 nodes, this training has 2") as caught:
        fit(two, callbacks=[keep()])
    path = str(caught.value).split("load_weights('")[1].split("'")[0]
    two.load_weights(path)
    assert_close(flat(two.get_weights()), flat(four.get_weights()), 1e-6)
    fit(two, callbacks=[keep("another")])


@pytest.mark.parametrize("damage", ["missing", "changed"])
def test_a_damaged_node_is_refused(tmp_path, damage):
    def keep():
        return callbacks.BackupAndRestore(tmp_path, delete_checkpoint=False)

    fit(made_for(NODES), callbacks=[keep()])
    path = tmp_path / "epoch-2.node-1.npz"
    path.unlink() if damage == "missing" else path.write_bytes(path.read_bytes()[:-1])
    model = made_for(NODES, seed=4)
    before = weights_of_nodes(model)
    with pytest.raises(ValueError, match=r"damaged: epoch-2.node-1.npz"):
        fit(model, epochs=4, callbacks=[keep()])
    np.testing.assert_array_equal(weights_of_nodes(model), before)


@pytest.mark.parametrize("steps_per_execution", [1, 3])
def test_nan_names_the_node_and_the_step(steps_per_execution):
    inputs = np.tile(X.reshape(-1, COLUMNS), (3, 1))
    inputs[2 * NODES * SHARE + 2 * SHARE] = np.nan  # an example of node 2 in step 2
    data = tf.data.Dataset.from_tensor_slices((inputs, np.tile(Y.reshape(-1, 1), (3, 1)))).batch(NODES * SHARE)
    with distribute.decentralized(mirrored(NODES), topology.ring(NODES)):
        model = network()
        model.compile(optimizers.DecentLaM(0.01), "mse", steps_per_execution=steps_per_execution)
    with pytest.raises(ValueError, match="weights of node 2 are not finite at step 2"):
        model.fit(data, epochs=1, shuffle=False, verbose=0)


def test_unstable_schedules_are_refused():
    with pytest.raises(ValueError, match=r"DecentLaM is unstable on .* at momentum 0\.8"):
        train(mirrored(NODES), topology.random_matching(NODES, seed=2), learning_rate=0.01, steps=1)


@pytest.mark.parametrize(
    ("graph", "arguments", "message"),
    [
        (topology.ring(5), {}, r"one node for each of the strategy's 4 replicas. Received: topology=.*ring\(5\)"),
        (topology.ring(4), {"message_dtype": "float16"}, "message_dtype='float16'"),
        (topology.ring(4), {"timeout": 0}, "timeout=0"),
        (topology.ring(4), {"bucket": 0}, "bucket=0"),
    ],
)
def test_arguments_of_the_scope(graph, arguments, message):
    with pytest.raises(ValueError, match=message), distribute.decentralized(mirrored(NODES), graph, **arguments):
        pass


def test_replicas_without_a_topology_are_refused():
    with mirrored(NODES).scope():
        model = network()
        model.compile(optimizers.DecentLaM(0.1), "mse")
    with pytest.raises(ValueError, match=r"DecentLaM on 4 replicas needs a topology.*decentralized\("):
        fit(model)


def test_averages_of_weights_are_refused_on_nodes():
    with pytest.raises(ValueError, match="no `use_ema` on several nodes"):
        train(mirrored(NODES), topology.ring(NODES), use_ema=True)


@keras3_only("gradient_accumulation_steps")
def test_accumulation_is_refused_on_nodes():
    with pytest.raises(ValueError, match="no `gradient_accumulation_steps` on several nodes"):
        train(mirrored(NODES), topology.ring(NODES), gradient_accumulation_steps=2)


def test_microbatches_are_refused_on_nodes():
    from keras_lsb.training import Microbatched

    with distribute.decentralized(mirrored(NODES), topology.ring(NODES)):
        model = Microbatched(network(), 2)
        model.compile(optimizers.DecentLaM(0.1), "mse")
    with pytest.raises(ValueError, match="Microbatched"):
        fit(model)


@pytest.mark.parametrize("cls", METHODS.values())
def test_config(cls):
    optimizer = cls(0.25, momentum=0.75, weight_decay=0.5, exclude_from_weight_decay=["gamma$"], clipnorm=2.0)
    config = json.loads(json.dumps(optimizer.get_config()))
    again = cls.from_config(config)
    assert again.get_config() == optimizer.get_config()
    assert {"exclude_from_layer_adaptation", "nesterov"}.isdisjoint(config)
    assert (again.momentum, again.weight_decay) == (0.75, 0.5)
    for name in ("nesterov", "exclude_from_layer_adaptation"):
        with pytest.raises(ValueError, match=f"has no argument '{name}'"):
            cls(0.1, **{name: True})


@pytest.mark.parametrize("momentum", [-0.1, 1.0, float("nan")])
def test_momentum(momentum):
    with pytest.raises(ValueError, match="momentum"):
        optimizers.DecentLaM(0.1, momentum=momentum)
