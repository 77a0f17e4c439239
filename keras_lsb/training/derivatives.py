"""First and second derivatives of a model's loss at inference, compiled, on TensorFlow and on JAX."""

from collections.abc import Callable
from typing import Any

from keras_lsb import _keras
from keras_lsb._types import Model, Structure, Tensor

tf = _keras.tensorflow


def loss_derivatives(model: Model) -> tuple[Callable, Callable]:
    """`(gradient(x, y, w), product(x, y, w, vectors))`: of the loss at inference, and its Hessian times the vectors.

    Both are compiled and return lists in the order of the trainable variables; the state of the model is not touched.
    """
    return _jax_derivatives(model) if _keras.tensorflow is None else _tensorflow_derivatives(model)


def _tensorflow_derivatives(model: Model) -> tuple[Callable, Callable]:
    def variables() -> list:  # TensorFlow's own: it cannot make zeros for a variable of Keras
        return [_keras.native(variable) for variable in model.trainable_variables]

    def gradient(x: Structure, y: Structure, sample_weight: Structure) -> list[Tensor]:
        with tf.GradientTape() as tape:
            loss = model.compute_loss(x=x, y=y, y_pred=model(x, training=False), sample_weight=sample_weight)
        return tape.gradient(loss, variables(), unconnected_gradients="zero")

    def product(x: Structure, y: Structure, sample_weight: Structure, vectors: Tensor) -> list[Tensor]:
        with tf.GradientTape() as tape:
            gradients = gradient(x, y, sample_weight)
            form = tf.add_n([tf.reduce_sum(g * v) for g, v in zip(gradients, vectors, strict=True)])
        return tape.gradient(form, variables(), unconnected_gradients="zero")

    def keeping_metrics(function: Callable) -> Callable:
        compiled = tf.function(function, reduce_retracing=True)

        def call(*arguments: Any) -> list[Tensor]:
            metrics = [variable for metric in model.metrics for variable in metric.variables] if _keras.LEGACY else []
            values = [variable.numpy() for variable in metrics]  # tf_keras counts every loss that it computes
            results = compiled(*arguments)
            for variable, value in zip(metrics, values, strict=True):
                variable.assign(value)
            return results

        return call

    return keeping_metrics(gradient), keeping_metrics(product)


def _jax_derivatives(model: Model) -> tuple[Callable, Callable]:
    import jax

    def loss_of(
        trainable: Tensor, non_trainable: Tensor, metrics: Tensor, optimizer_state: Tensor, batch: Structure
    ) -> Tensor:
        loss, _ = model.compute_loss_and_updates(
            trainable, non_trainable, metrics, *batch, training=False, optimizer_variables=optimizer_state
        )
        return loss

    def product_of(vectors: Tensor, trainable: Tensor, *rest: Tensor) -> Any:
        return jax.jvp(lambda values: jax.grad(loss_of)(values, *rest), (trainable,), (vectors,))[1]

    def state() -> list:
        model.jax_state_sync()  # within `fit` the variables are empty otherwise
        groups = (model.trainable_variables, model.non_trainable_variables, model.metrics_variables)
        return [[variable.value for variable in group] for group in (*groups, model.optimizer.variables)]

    gradient, product = jax.jit(jax.grad(loss_of)), jax.jit(product_of)
    return (
        lambda *batch: gradient(*state(), batch),
        lambda x, y, sample_weight, vectors: product(vectors, *state(), (x, y, sample_weight)),
    )
