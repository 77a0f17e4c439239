"""What exchanges share, and those that need no second process: bytes, rounding, and the program for a TPU."""

import re

import numpy as np
import pytest

from keras_lsb import topology
from tests.support import TENSORFLOW, assert_close, tensorflow_only
from tests.test_replicas import mirrored

if TENSORFLOW:
    import tensorflow as tf

    from keras_lsb.distribute.exchange import GroupedSums, InProcess, Pairwise, exchange_for

pytestmark = tensorflow_only("tf.distribute")

GRAPHS = {
    "ring": topology.ring(4),
    "path": topology.path(4),
    "complete": topology.complete(4),
    "ring_matchings": topology.ring_matchings(4),
    "path_matchings": topology.path_matchings(4),
    "random_matching": topology.random_matching(4, seed=1, period=5),
}
MESSAGES = np.random.default_rng(5).normal(size=(4, 301)).astype("float32")


def exchanged(exchange, step, messages=MESSAGES) -> np.ndarray:
    """Disagreements of four nodes in one process: (nodes, entries)."""
    strategy = mirrored(4)

    @tf.function
    def mixed(message):
        return strategy.run(lambda z: exchange.disagreement(z, tf.constant(step)), args=(message,))

    def of_node(context):
        return tf.constant(messages[context.replica_id_in_sync_group])

    shares = strategy.experimental_distribute_values_from_function(of_node)
    return np.stack([value.numpy() for value in strategy.experimental_local_results(mixed(shares))])


@pytest.mark.parametrize("step", [0, 1, 6])
@pytest.mark.parametrize("name", GRAPHS)
def test_in_one_process_it_is_what_the_matrix_says(name, step):
    graph = GRAPHS[name]
    expected = MESSAGES - graph.matrix(step) @ MESSAGES.astype("float64")
    found = exchanged(InProcess(graph, "float32"), step)
    assert_close(found, expected, 1e-6)
    assert_close(found, topology.disagreement(graph, MESSAGES, step), 1e-6)


def test_rounded_messages_cancel():
    """What two nodes give each other has the sum 0, whatever rounding does to it."""
    graph = topology.ring(4)
    rounded = tf.cast(tf.cast(MESSAGES, "bfloat16"), "float32").numpy().astype("float64")
    exchange = InProcess(graph, "bfloat16")
    found = exchanged(exchange, 0)
    assert_close(found, rounded - graph.matrix() @ rounded, 1e-6)
    assert_close(found.sum(0), 0, 1e-6)
    assert exchange.bytes_per_step(301) == 2 * 2 * 301


def test_nodes_that_agree_have_no_disagreement():
    for dtype in ("float32", "bfloat16"):
        found = exchanged(InProcess(topology.exponential(4), dtype), 0, np.tile(MESSAGES[:1], (4, 1)))
        np.testing.assert_array_equal(found, 0)


def test_a_message_that_is_not_finite_is_not_sent():
    messages = MESSAGES.copy()
    messages[2, 7] = np.inf
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"not finite, of node and step.*2.*11"):
        exchanged(InProcess(topology.ring(4), "float32"), 11, messages)


@pytest.mark.parametrize(
    ("name", "dtype", "models"),
    [
        ("ring", "float32", 2),
        ("path", "float32", 1.5),
        ("ring_matchings", "float32", 1),
        ("path_matchings", "float32", 0.75),
        ("complete", "bfloat16", 1.5),
    ],
)
def test_bytes(name, dtype, models):
    """Of the mean node: a path's ends send half as much."""
    assert InProcess(GRAPHS[name], dtype).bytes_per_step(1000) == 4000 * models


def program(exchange) -> str:
    """What XLA makes of a step on a TPU; the phase is only known when it runs."""

    @tf.function(jit_compile=True, autograph=False)
    def step(message, node, phase):
        return exchange.of_node(node, message, phase)

    specs = tf.TensorSpec([301]), tf.TensorSpec([], tf.int32), tf.TensorSpec([], tf.int64)
    return step.experimental_get_compiler_ir(*specs)(stage="hlo")


@pytest.mark.parametrize(
    ("graph", "groups"),
    [
        (topology.ring(4), ["{{0,1},{2,3}}", "{{0,3},{1,2}}"]),
        (topology.ring_matchings(4), ["{{0,1},{2,3}}", "{{0,3},{1,2}}"]),
        (topology.path(4), ["{{0,1},{2,3}}", "{{1,2},{0,3}}"]),  # 0 and 3 are idle, with a weight of 0
    ],
    ids=["ring", "ring_matchings", "path"],
)
def test_on_a_tpu_the_pairs_of_a_matching_are_summed_together(graph, groups):
    found = program(GroupedSums(graph, "float32"))
    sums = re.findall(r"all-reduce\(.*?replica_groups=(\{\{.*?\}\})", found)
    assert sorted(sums) == sorted(groups)
    assert "callback" not in found
    assert ("conditional" in found) == (graph.period > 1)


def test_a_tpu_needs_pairs():
    with pytest.raises(ValueError, match="even number of nodes"):
        GroupedSums(topology.ring(5), "float32")
    with pytest.raises(ValueError, match="message_dtype='bfloat16'"):
        GroupedSums(topology.ring(4), "bfloat16")


def test_choice():
    found = exchange_for(mirrored(4), topology.ring(4), message_dtype="bfloat16", timeout=1.0, bucket=8)
    assert isinstance(found, InProcess)
    assert not isinstance(found, Pairwise)
    assert found.message_dtype == "bfloat16"
