"""Models are read as one, whatever their replicas have for themselves.

Moving statistics of batch normalization are the mean over the replicas wherever a model is read.

Each replica updates its own. What then evaluates, predicts or saves takes each replica's own (tf_keras, when it
evaluates) or those of the first (Keras 3, when it saves). Importing the package has the methods below average first.
The average of the statistics goes on as the statistics of the average, since their update is linear: training is not
changed by it.
"""

import functools
import weakref
from collections.abc import Callable, Sequence
from typing import Any

from keras_lsb import _keras
from keras_lsb._types import Model, Strategy, Variable
from keras_lsb.distribute.nodes import consensus, has_nodes
from keras_lsb.distribute.reduction import in_replica_of_several

READERS = ("evaluate", "predict", "save", "save_weights", "export", "get_weights")
_averages: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()  # model -> (its variables, what averages them)


def average_batch_statistics(model: Model) -> None:
    """Replaces the moving statistics of batch normalization by their mean over the replicas of the model's strategy.

    `evaluate`, `predict`, `save`, `save_weights`, `export` and `get_weights` do so themselves. Layers that synchronize
    their statistics in each step are left out. With several workers all of them have to call it, as for saving. The
    nodes of a decentralized training keep their own, and are averaged for the time of reading: see `consensus`.

    Args:
        model: of either Keras; one without a strategy is left as it is.
    """
    if _keras.tensorflow is None or not hasattr(model, "distribute_strategy"):
        return
    tf, strategy = _keras.tensorflow, model.distribute_strategy
    if strategy.num_replicas_in_sync == 1 or in_replica_of_several() or not tf.executing_eagerly():
        return
    variables = [_keras.native(variable) for variable in _keras.batch_statistics(model)]
    if not variables:
        return
    known, average = _averages.get(model, ((), None))
    if [*map(id, known)] != [*map(id, variables)]:
        average = _averaging(strategy, variables)
        _averages[model] = variables, average
    average()


def _averaging(strategy: Strategy, variables: Sequence[Variable]) -> Callable:
    tf = _keras.tensorflow

    def on_replica() -> None:
        context = tf.distribute.get_replica_context()
        values = [tf.identity(variable) for variable in variables]
        for variable, mean in zip(variables, context.all_reduce(tf.distribute.ReduceOp.MEAN, values), strict=True):
            variable.assign(mean)

    return tf.function(lambda: strategy.run(on_replica), autograph=False)


def average_before_reading() -> None:
    """Has the methods of all models that read statistics average them first."""
    if _keras.tensorflow is None:
        return
    for name in READERS:
        if hasattr(_keras.Model, name):
            setattr(_keras.Model, name, _averaging_first(getattr(_keras.Model, name)))


def _averaging_first(method: Callable) -> Callable:
    @functools.wraps(method)
    def averaging(model: Model, *arguments: Any, **keywords: Any) -> Any:
        if has_nodes(model):
            with consensus(model):
                return method(model, *arguments, **keywords)
        average_batch_statistics(model)
        return method(model, *arguments, **keywords)

    return averaging
