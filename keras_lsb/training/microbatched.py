"""Training with microbatches: gradients of parts of a batch are summed, and their norms give the noise scale.

Source of the estimator: McCandlish et al., 2018, arXiv 1812.06162, appendix A.1.
"""

import re
from collections.abc import Callable, Iterator
from typing import Any, Self

from keras_lsb import _keras, scaling
from keras_lsb._checks import proportion, whole
from keras_lsb._keras import ops
from keras_lsb._types import Model, Structure, Tensor, Variable
from keras_lsb.scaling.noise_scale import COLUMNS, noise_to_signal

if _keras.tensorflow is not None:
    from keras_lsb.training import tensorflow_step as backend_step
else:
    from keras_lsb.training import jax_step as backend_step  # type: ignore[no-redef]  # the backend has one of the two


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
    and metrics. They are state of the model: a checkpoint or a `.keras` file holds them. `callbacks.NoiseScale` adds
    the error bar, an interval between measurements, groups of layers and a verdict.

    Args:
        model: any Keras model that does not override `train_step`. It shares its weights with the wrapper: export and
            reuse `model` itself after the training.
        microbatches: parts of each replica's batch, at least 1.
        noise_scale: whether to measure at all.
        decay: weight of the past in the averages, in measurements; 0.99 holds about the last hundred,
            1 holds all.
        interval: optimizer steps between measurements.
        groups: dict of name to regular expression for the paths of weights: a noise scale for each, besides the total.
        name: name of the wrapper.

    Raises:
        ValueError: an argument out of range, or a model with a `train_step` of its own.
    """

    def __init__(
        self,
        model: Model,
        microbatches: int = 1,
        *,
        noise_scale: bool = True,
        decay: float = 0.99,
        interval: int = 1,
        groups: dict[str, str] | None = None,
        name: str | None = None,
    ):
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
        self._accumulated = Accumulated()
        self.averages = _keras.add_local_weight(self, "noise_scale_averages", (len(COLUMNS),))
        self.measured_batch = _keras.add_local_weight(self, "noise_scale_batch", ())
        self.groups: dict = {}
        self.group_averages: Variable = None
        self.measure(decay=decay, interval=interval, groups=groups)
        if model.built:
            self.built = True

    def measure(
        self, *, decay: float | None = None, interval: int | None = None, groups: dict[str, str] | None = None
    ) -> None:
        """Changes how the noise scale is measured: what is None stays. The averages are kept.

        Args:
            decay: weight of the past in the averages, in measurements.
            interval: optimizer steps between measurements.
            groups: dict of name to regular expression on the paths of weights.

        Raises:
            ValueError: an argument out of range, other groups than were set before, or another interval or groups while
                the gradients of batches wait for their update.
        """
        before = getattr(self, "decay", None), getattr(self, "interval", None), len(self.groups)
        decay = before[0] if decay is None else proportion("decay", decay)
        interval = before[1] if interval is None else whole("interval", interval)
        groups = {name: str(pattern) for name, pattern in (groups or {}).items()}
        if self.groups and groups and groups != self.groups:
            raise ValueError(f"`groups` cannot change. Received: groups={groups}, and before {self.groups}")
        changed = {"interval": interval != before[1], "groups": bool(groups and not self.groups)}
        if self.pending_batches and any(changed.values()):
            names = " and ".join(f"`{name}`" for name, is_changed in changed.items() if is_changed)
            raise ValueError(
                f"{names} cannot be set while batches are accumulated: their gradients are measured already. "
                f"Received: interval={interval}, groups={groups}, with {self.pending_batches} batches waiting"
            )
        self.decay, self.interval = decay, interval
        if groups and not self.groups:
            self._accumulated = Accumulated()  # which has a row for each group
            self.groups = groups
            self.group_averages = _keras.add_local_weight(self, "noise_scale_groups", (len(groups), len(COLUMNS)))
        if before != (self.decay, self.interval, len(self.groups)):
            self.train_function: Any = None  # what is traced holds the former values

    def accumulate(self, batches: int) -> None:
        """From now on, one update takes `batches` batches of `fit`. TensorFlow only.

        Gradients are summed in variables of the size of the weights; a sum that is begun is finished, with the new
        number. The schedule of a learning rate sees updates, the progress bar and `steps_per_epoch` see batches.

        Args:
            batches: batches of `fit` for each update, at least 1.

        Raises:
            ValueError: not a whole number >= 1, `steps_per_execution` > 1, or a backend other than TensorFlow.
        """
        batches = whole("batches", batches)
        if batches > 1:
            self.require_accumulation()
        self.accumulation = batches

    def require_accumulation(self) -> None:
        """Raises a ValueError where `accumulate` cannot work: the backend, or several steps per execution."""
        if _keras.tensorflow is None:
            raise ValueError(
                f"Batches of `fit` are accumulated on TensorFlow only. Received: backend {_keras.BACKEND!r}"
            )
        if _keras.steps_per_execution(self) > 1:
            raise ValueError(
                "`steps_per_execution` must be 1 where batches of `fit` are accumulated. "
                f"Received: steps_per_execution={_keras.steps_per_execution(self)}"
            )

    @property
    def pending_batches(self) -> int:
        """Batches of `fit` whose gradients wait for the next update."""
        return self._accumulated.batches

    def make_train_function(self, force: bool = False) -> Callable:
        if _keras.tensorflow is None:
            return super().make_train_function(force=force)
        if self.train_function is not None and not force:
            return self.train_function
        functions: dict[str, Any] = {}
        for part in backend_step.PARTS:  # each is traced when it is first needed
            super().make_train_function(force=True)
            functions[part] = self.train_function

        def train(iterator: Iterator) -> dict:
            self._accumulated.part = backend_step.next_part(self)
            return functions[self._accumulated.part](iterator)

        self.train_function = train
        return train

    def call(self, inputs: Structure, training: bool | Tensor | None = None) -> Tensor:
        return self.model(inputs, training=training)

    def compute_loss(
        self,
        x: Structure = None,
        y: Structure = None,
        y_pred: Structure = None,
        sample_weight: Structure = None,
        training: bool = True,
    ) -> Tensor:
        if type(self.model).compute_loss is not _keras.Model.compute_loss:
            return self.model.compute_loss(x=x, y=y, y_pred=y_pred, sample_weight=sample_weight)
        return super().compute_loss(x=x, y=y, y_pred=y_pred, sample_weight=sample_weight)

    def training_loss(
        self, x: Structure, y: Structure, sample_weight: Structure, examples: int | Tensor
    ) -> tuple[Structure, Tensor]:
        """(predictions, loss) of one microbatch in training; the loss is divided by the number of replicas."""
        y_pred = self(x, training=True)
        return y_pred, self.compute_loss(x=x, y=y, y_pred=y_pred, sample_weight=sample_weight)

    def update_training_metrics(
        self,
        loss: Tensor,
        examples: int | Tensor,
        x: Structure,
        y: Structure,
        y_pred: Structure,
        sample_weight: Structure,
    ) -> None:
        """Adds one microbatch to the metrics. `loss` is the mean over its examples."""
        _keras.update_metrics(self, loss, examples, x, y, y_pred, sample_weight)

    def step_logs(self) -> dict:
        """What a step logs besides metrics: values that are the same on all replicas."""
        return logs_of(self.averages) if backend_step.measures_noise(self) else {}

    def _get_metrics_result_or_logs(self, logs: dict) -> dict:
        """What Keras 3 logs of an epoch: beside other logs, it would average the metrics of uneven shares evenly."""
        return {**logs, **self.get_metrics_result()}

    def train_step(self, *arguments: Any) -> Any:
        return backend_step.train_step(self, *arguments)

    def noise_scale_estimate(self, group: str | None = None, confidence: float = 0.9) -> scaling.NoiseScaleEstimate:
        """The noise scale of all trainable weights or of one group, with its confidence interval, in examples."""
        if group is None:
            return scaling.estimate(ops.convert_to_numpy(_keras.read(self.averages)), confidence)
        if group not in self.groups:
            raise ValueError(f"`group` must be one of {list(self.groups)}. Received: group={group!r}")
        rows = ops.convert_to_numpy(_keras.read(self.group_averages))
        return scaling.estimate(rows[list(self.groups).index(group)], confidence)

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

    def get_config(self) -> dict:
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
    def from_config(cls, config: dict, custom_objects: dict | None = None) -> Self:
        model = _keras.deserialize_object(config["model"], custom_objects=custom_objects)
        return cls(**{**config, "model": model})


class Accumulated:
    """What is summed for the next update, out of sight of Keras' tracking: no checkpoint holds it."""

    def __init__(self) -> None:
        self.part, self.batches = "update", 0
        self.gradients, self.statistics, self.examples = None, None, None


def logs_of(averages: Tensor) -> dict:
    """What `fit` logs of the averages, in-graph."""
    signal, noise = averages[COLUMNS.index("grad_sq_norm")], averages[COLUMNS.index("trace")]
    return {
        "noise_scale": noise_to_signal(noise, signal, ops.where),
        "grad_sq_norm": signal,
        "grad_trace": noise,
    }
