"""In the traced step of `training.ConAdv` neither the update nor the attack waits for the other."""

import pytest

from keras_lsb import optimizers
from tests.conadv_problem import BATCH, GRAPH, RATE, X, Y, conadv, fit
from tests.support import TENSORFLOW, keras, tensorflow_only

if TENSORFLOW:
    import tensorflow as tf

pytestmark = tensorflow_only("ConAdv")
_CALLS = ("PartitionedCall", "StatefulPartitionedCall")


def traced_step(model):
    """(graph, the attack's output within it, if that is handed on) of a step that knows the batch ahead."""
    fit(model, X[:BATCH].astype("float32"), Y[:BATCH].astype("float32"), epochs=1)
    part = slice(0, BATCH)
    batch = tuple(tf.constant(array[part], "float32") for array in (X, Y))
    examples = dict.fromkeys(model.craft(batch, tf.constant(0)), batch[0])
    ahead = (examples, batch) if model.look_ahead else (None, None)
    graph = model.train_function._update.get_concrete_function(batch, *ahead).graph
    crafted = graph.structured_outputs[1]
    return graph, [_producer(tensor) for tensor in crafted.values()]


def _producer(tensor):
    """What computes a result; the copy that a function returns waits for all that the function does."""
    op = tensor.op
    while op.type == "Identity":
        op = op.inputs[0].op
    return op


def updates(graph, model) -> list:
    """What writes the trainable variables: assignments, or calls of a compiled update."""
    handles = {id(variable.handle) for variable in model.trainable_weights for variable in [_native(variable)]}
    inside = {id(placeholder) for handle, placeholder in graph.captures if id(handle) in handles}
    assert len(inside) == len(model.trainable_weights)
    found = [
        op
        for op in graph.get_operations()
        if any(id(tensor) in inside for tensor in op.inputs)
        and (op.type.startswith(("Assign", "ResourceApply")) or op.type in _CALLS)
    ]
    written = {id(tensor) for op in found for tensor in op.inputs if id(tensor) in inside}
    assert written == inside
    return found


def _native(variable):
    return variable if hasattr(variable, "handle") else variable.value


def before(ops) -> set:
    """All operations that these wait for, by data and by control edges."""
    seen, waiting = set(), list(ops)
    while waiting:
        op = waiting.pop()
        for other in [*(tensor.op for tensor in op.inputs), *op.control_inputs]:
            if other not in seen:
                seen.add(other)
                waiting.append(other)
    return seen


def rule(name):
    return optimizers.LARS(RATE) if name == "LARS" else keras.optimizers.SGD(RATE, momentum=0.9)


@pytest.mark.parametrize("name", ["SGD", "LARS"])
def test_update_and_attack_wait_for_nothing_of_each_other(name):
    model = conadv(staleness=1, attack_steps=2, random_start=0.5, compiling=GRAPH | {"optimizer": rule(name)})
    graph, attacks = traced_step(model)
    assert len(attacks) == 1
    written = updates(graph, model)
    assert not before(attacks) & set(written)
    assert not before(written) & set(attacks)
    assert len(before(attacks)) > 10


@pytest.mark.parametrize("name", ["SGD"])
def test_without_staleness_the_update_waits_for_the_attack(name):
    model = conadv(staleness=0, compiling=GRAPH | {"optimizer": rule(name)})
    graph, handed_on = traced_step(model)
    assert handed_on == []
    shape = (BATCH, X.shape[1])
    operations = [op for op in graph.get_operations() if op.type == "StopGradient"]
    attacks = [op for op in operations if tuple(op.outputs[0].shape) == shape]
    assert len(attacks) == 1
    written = updates(graph, model)
    waiting = [op for op in written if attacks[0] in before([op])]
    assert len(waiting) >= 0.7 * len(written)  # all but gamma and beta of the clean branch
    assert not before(attacks) & set(written)
