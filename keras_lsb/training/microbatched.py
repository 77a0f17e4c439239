"""Training with microbatches: gradients of parts of a batch are summed, and their norms give the noise scale.

Source of the estimator: McCandlish et al., 2018, arXiv 1812.06162, appendix A.1.
"""

import re

from keras_lsb import _keras, scaling
from keras_lsb._checks import proportion, whole
from keras_lsb._keras import ops
from keras_lsb.scaling.noise_scale import COLUMNS, noise_to_signal

if _keras.tensorflow is None:
    from keras_lsb.training import jax_step as backend_step
else:
    from keras_lsb.training import tensorflow_step as backend_step


@_keras.register
class Microbatched(_keras.Model):
    """A model whose training step splits each batch, sums the gradients, updates once and reports the noise scale.

    The update is that of the whole batch, with the memory of one microbatch: a batch of n examples is cut into
    microbatches of ceil(n / microbatches) examples and what remains, and gradients are weighted with the number of
    examples, so that a ragged last batch counts as it would unsplit. On several replicas each splits its share, and the
    weights account for shares of different size. With several replicas, `microbatches=1` measures the noise scale from
    the replicas' gradients alone, with no extra backward pass.

    What depends on the batch is computed per microbatch: batch normalization takes its statistics from it (its moving
    averages advance once for each), dropout draws anew, and a loss that is not a mean over examples, such as one that
    divides by the sum of the sample weights, is the mean of its values on the microbatches.

    `fit` reports `noise_scale`, `grad_sq_norm` and `grad_trace`, averages over the last measurements, beside the losses
    and metrics. They are state of the model: a checkpoint or a `.keras` file holds them. `callbacks.NoiseScale` adds the
    error bar, an interval between measurements, groups of layers and a verdict.

    Args:
        model: any Keras model that does not override `train_step`. It shares its weights with the wrapper: export and
            reuse `model` itself after the training.
        microbatches: parts of each replica's batch, at least 1.
        noise_scale: whether to measure at all.
        decay: weight of the past in the averages, in measurements; 0.99 holds about the last hundred,
            1 holds all.
        interval: optimizer steps between measurements.
        groups: dict of name to regular expression for the paths of weights: a noise scale for each, besides the total.

    Raises:
        ValueError: an argument out of range, or a model with a `train_step` of its own.
    """

    def __init__(self, model, microbatches=1, *, noise_scale=True, decay=0.99, interval=1, groups=None, name=None):
        super().__init__(name=name)
        if type(model).train_step is not _keras.Model.train_step:
            raise ValueError(
                "`model` must not override `train_step`, which the microbatches replace; override `compute_loss`. "
                f"Received: model of type {type(model).__name__}"
            )
        self.model = model
        self.microbatches = whole("microbatches", microbatches)
        self.output_names = getattr(model, "output_names", None)
        self.noise_scale = bool(noise_scale)
        self.accumulation = 1
        self.measure(decay=decay, interval=interval, groups=groups)

    def measure(self, *, decay=0.99, interval=1, groups=None) -> None:
        """Sets how the noise scale is measured; averages are kept unless the groups change."""
        groups = {name: str(pattern) for name, pattern in (groups or {}).items()}
        settings = proportion("decay", decay), whole("interval", interval)
        if settings != (getattr(self, "decay", None), getattr(self, "interval", None)):
            self.decay, self.interval = settings
            self.train_function = None
        if groups != getattr(self, "groups", None):
            self.groups = groups
            self.train_function = None
            self.averages = self._add_averages(1 + len(groups))

    def call(self, inputs, training=None):
        return self.model(inputs, training=training)

    def build(self, input_shape=None):
        if not self.model.built and input_shape is not None:
            self.model.build(input_shape)
        self.built = True

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        if type(self.model).compute_loss is not _keras.Model.compute_loss:
            return self.model.compute_loss(x=x, y=y, y_pred=y_pred, sample_weight=sample_weight)
        return super().compute_loss(x=x, y=y, y_pred=y_pred, sample_weight=sample_weight)

    def train_step(self, *arguments):
        return backend_step.train_step(self, *arguments)

    def noise_scale_estimate(self, group: str | None = None, confidence: float = 0.9) -> scaling.NoiseScaleEstimate:
        """The noise scale of all trainable weights or of one group, with its confidence interval, in examples."""
        row = 0 if group is None else 1 + list(self.groups).index(group)
        return scaling.estimate(ops.convert_to_numpy(_keras.read(self.averages))[row], confidence)

    def group_members(self) -> list[list[int]]:
        """For the total and each group, the positions of its variables in `trainable_variables`."""
        paths = [getattr(variable, "path", variable.name) for variable in self.trainable_variables]
        members = [list(range(len(paths)))]
        for name, pattern in self.groups.items():
            found = [index for index, path in enumerate(paths) if re.search(pattern, path)]
            if not found:
                raise ValueError(f"`groups` has a pattern that matches no weight. Received: {name!r}: {pattern!r}")
            members.append(found)
        return members

    def get_config(self):
        return {
            "model": _keras.serialize_object(self.model),
            "microbatches": self.microbatches,
            "noise_scale": self.noise_scale,
            "decay": self.decay,
            "interval": self.interval,
            "groups": dict(self.groups),
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        model = _keras.deserialize_object(config["model"], custom_objects=custom_objects)
        return cls(**{**config, "model": model})

    def _add_averages(self, rows: int):
        return _keras.add_local_weight(self, "noise_scale_averages", (rows, len(COLUMNS)))


def logs_of(averages) -> dict:
    """What `fit` logs of the averages, in-graph."""
    signal, noise = averages[0, COLUMNS.index("grad_sq_norm")], averages[0, COLUMNS.index("trace")]
    return {
        "noise_scale": noise_to_signal(noise, signal, ops.where),
        "grad_sq_norm": signal,
        "grad_trace": noise,
    }
