"""Training on clean batches and on adversarial examples that are made with weights of former steps.

Source: Liu et al., "Concurrent Adversarial Learning for Large-Batch Training", ICLR 2022, arXiv 2106.00221,
algorithm 1.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from keras_lsb import _keras
from keras_lsb._checks import choice, non_negative, whole
from keras_lsb._types import Model, Radius, Structure, Tensor, ValueRange, Variable
from keras_lsb.distribute.reduction import local_shares, local_variable, replica_count, sum_over_replicas
from keras_lsb.training.attacked import Attacked
from keras_lsb.training.microbatched import Microbatched

tf = _keras.tensorflow
if tf is not None:
    from keras_lsb.training import tensorflow_step
    from keras_lsb.training.attack import Attack
    from keras_lsb.training.branch_losses import additional_loss, branch_loss
    from keras_lsb.training.kept_weights import KeptWeights
    from keras_lsb.training.look_ahead import LookAhead, Step
    from keras_lsb.training.named_inputs import named_inputs, perturbed_inputs, with_inputs

MODES = ("concurrent", "sequential", "adversarial", "none")


@_keras.register
class ConAdv(Attacked):
    """A model that trains on each clean batch and on adversarial examples made for it with weights of former steps.

    Step t minimizes, with the weights w and the batch (x, y),

        clean_weight * loss(w_t; x_t, y_t) + adversarial_weight * loss(w_t; a_t, y_t) + regularization
        a_t = attack on (x_t, y_t) with the weights w_max(0, t - staleness)

    and makes a_(t + staleness) for the batch that comes so many steps later, beside the update: neither waits for the
    other. Where no later batch is at hand (the end of an epoch, `train_on_batch`, a resumed run), examples are made
    when their batch comes, with the weights kept from then; they are the same, but for what dropout draws. Nothing is
    left out and nothing trained on twice: the updates of `fit` are those of the wrapped model. Kept weights take
    `staleness` copies of the trainable variables, batches ahead `staleness` batches and as many adversarial ones.

    A step costs three passes forward and backward, for any staleness, where a plain one costs one. It gains time over
    staleness 0 only where the attack has cores or a device that would be idle otherwise.

    Layers that normalize with statistics of the batch get a second set of gamma, beta and moving statistics for
    adversarial examples, which starts as a copy. `evaluate`, `predict`, `save` and `export` know the main set only;
    what they save is the wrapped model. `save_weights` and checkpoints hold everything that a run needs to go on.

    `fit` reports `loss`, the sum, beside `clean_loss` and `adversarial_loss`, without weights and regularization.
    Metrics are those of the clean batch. Sample weights and label smoothing apply to both.

    Args:
        model: a Keras model that does not override `train_step`, or a `Microbatched` one, whose settings are kept.
        epsilon: radius of the attack in the maximum norm, in units of the inputs, in front of any preprocessing layers
            of the model: a number, one per channel (the last axis), or a dict of such by input.
            `training.input_units` computes it from pixels.
        step_size: of the attack, likewise; None for epsilon / attack_steps.
        attack_steps: passes of the attack, at least 1; with 1 it is the fast gradient sign method.
        staleness: updates between an attack and the training on its examples; 0 has each wait for its attack.
        mode: "concurrent"; "sequential", which is staleness 0; "adversarial" trains on adversarial examples alone,
            with the main statistics; "none" on clean ones alone.
        loss_weights: (clean, adversarial). (0.5, 0.5) keeps the gradient at the size of plain training.
        random_start: probability that an attack starts at random in the ball, one draw per batch.
        target: None to raise the loss of the label; "random" to lower that of another class, drawn per example, for
            class indices, one-hot or smoothed labels.
        value_range: (low, high) of an input value, each a number or one per channel, or a dict by input; None for no
            limit. Inputs outside of it end in an error at the first batch.
        perturb: names of the inputs that are attacked; None for all.
        attack_training: whether the attack sees the model in training mode (statistics of the batch, dropout).
        attack_device: device for the attack, or a list with one per replica of this process; None for that of the
            update. Such a step cannot be compiled by XLA.
        seed: of random starts and targets, which depend on it and the number of the step alone.
        microbatches, noise_scale, decay, interval, groups: those of `Microbatched`.
        name: name of the wrapper.

    Raises:
        ValueError: an argument out of range; when training begins, inputs that are not of a floating type or outside of
            `value_range`; a loss without a gradient with respect to an input.
    """

    def __init__(
        self,
        model: Model,
        epsilon: Radius,
        step_size: Radius | None = None,
        attack_steps: int = 1,
        staleness: int = 1,
        *,
        mode: str = "concurrent",
        loss_weights: tuple[float, float] = (1.0, 1.0),
        random_start: float = 0.0,
        target: str | None = None,
        value_range: ValueRange | None = None,
        perturb: str | Sequence[str] | None = None,
        attack_training: bool = True,
        attack_device: str | Sequence[str] | None = None,
        seed: int = 0,
        microbatches: int = 1,
        noise_scale: bool = True,
        decay: float = 0.99,
        interval: int = 1,
        groups: dict[str, str] | None = None,
        name: str | None = None,
    ):
        if tf is None:
            raise ValueError(f"`ConAdv` runs on TensorFlow. Received: backend {_keras.BACKEND!r}")
        if isinstance(model, ConAdv):
            raise ValueError("`model` must not be a `ConAdv` itself")
        splitting: dict[str, Any] = {"microbatches": microbatches, "noise_scale": noise_scale, "decay": decay}
        splitting |= {"interval": interval, "groups": groups}
        if isinstance(model, Microbatched):
            splitting = {name: getattr(model, name) for name in splitting}
            model = model.model
        attack = Attack(
            epsilon,
            step_size,
            attack_steps,
            random_start=random_start,
            target=target,
            value_range=value_range,
            seed=seed,
        )
        super().__init__(
            model,
            attack,
            perturb=perturb,
            attack_training=attack_training,
            attack_device=attack_device,
            name=name,
            **splitting,
        )
        self.staleness = whole("staleness", staleness, minimum=0)
        self.mode = choice("mode", mode, MODES)
        self.loss_weights = _pair_of_weights(loss_weights)
        self.steps = _keras.add_local_weight(self, "conadv_steps", ())
        self._memory = Memory()
        if model.built:
            self._complete()

    @property
    def look_ahead(self) -> int:
        """Steps between an attack and the training on its examples."""
        return self.staleness if self.mode in ("concurrent", "adversarial") else 0

    @property
    def _has_two_branches(self) -> bool:
        return self.mode in ("concurrent", "sequential")

    def compile(self, *arguments: Any, **keywords: Any) -> None:
        super().compile(*arguments, **keywords)
        accumulation = getattr(_keras.innermost(self.optimizer), "gradient_accumulation_steps", None)
        if accumulation not in (None, 1):
            raise ValueError(
                "`gradient_accumulation_steps` of the optimizer must be 1: staleness counts updates. Use the "
                f"`microbatches` of `ConAdv`. Received: gradient_accumulation_steps={accumulation}"
            )

    def require_accumulation(self) -> None:
        """Raises a ValueError: batches of `fit` cannot be accumulated here."""
        raise ValueError("`ConAdv` updates once per batch of `fit`: use its `microbatches` to split a larger batch")

    def make_train_function(self, force: bool = False) -> Callable:
        if self.train_function is None or force:
            self.train_function = LookAhead(self)
        return self.train_function

    def train_step(self, data: Structure) -> dict:
        """One update. `data` is a batch, or a `Step` with the examples that were made for it before."""
        step = data if isinstance(data, Step) else Step(data, None, None, [])
        x, y, sample_weight = _keras.unpack(step.batch)
        # The attack is traced before anything is assigned, so that it waits for nothing of this step.
        if step.ahead is not None:
            step.crafted.append(self.craft(step.ahead, tf.convert_to_tensor(self.steps) + self.look_ahead))
        adversarial = step.adversarial
        if adversarial is None:
            adversarial = {} if self.mode == "none" else self.craft_now(step.batch)
        self._memory.kept.keep()
        logs = tensorflow_step.train_step(self, ((x, adversarial), y, sample_weight))
        self.steps.assign_add(1.0)
        return logs

    def craft_now(self, batch: Structure) -> dict:
        """Adversarial versions of the batch that is trained on next, with the weights kept for it."""
        return self.craft(batch, tf.convert_to_tensor(self.steps), self._memory.kept.oldest())

    def prepare(self, batch: Structure) -> None:
        """What the first batch needs and shows, outside of replicas: variables, and inputs that cannot be attacked."""
        if self._memory.prepared:
            return
        if self._memory.complete:
            self._memory.kept.require(self.trainable_variables)
        shares = local_shares(self.distribute_strategy, batch)
        with self.distribute_strategy.scope():
            self._build(_keras.unpack(shares[0]))
        if self.mode != "none":
            for x, *_ in shares:
                chosen = perturbed_inputs(named_inputs(self.model, x), self.perturb)
                self.attack.require_attackable(chosen)
            self.attack.warn_of_lost_steps(chosen, getattr(self.model, "compute_dtype", None))
        if float(_keras.read(self.steps)) == 0:
            self._begin()
        self._memory.prepared = True

    def training_loss(
        self, x: Structure, y: Structure, sample_weight: Structure, examples: int | Tensor
    ) -> tuple[Structure, Tensor]:
        clean, adversarial = x
        inputs = with_inputs(clean, named_inputs(self.model, clean), adversarial)
        main, weight = (inputs, self.loss_weights[1]) if self.mode == "adversarial" else (clean, self.loss_weights[0])
        y_pred = self.model(main, training=True)
        losses = [branch_loss(self, main, y, y_pred, sample_weight, counts_outputs=True)]
        total = (losses[0] if self.mode == "none" else weight * losses[0]) + additional_loss(self, losses[0].dtype)
        if self._has_two_branches:
            with self.adversarial_set.in_place():
                adversarial_pred = self.model(inputs, training=True)
            losses.append(branch_loss(self, inputs, y, adversarial_pred, sample_weight))
            total += self.loss_weights[1] * losses[1]
        self._count_losses(losses, examples)
        return y_pred, total

    def update_training_metrics(
        self,
        loss: Tensor,
        examples: int | Tensor,
        x: Structure,
        y: Structure,
        y_pred: Structure,
        sample_weight: Structure,
    ) -> None:
        if _keras.LEGACY:  # where Keras' own step adds it when it computes the loss
            _keras.loss_tracker(self).update_state(loss, sample_weight=examples)
        super().update_training_metrics(loss, examples, x[0], y, y_pred, sample_weight)

    def step_logs(self) -> dict:
        logs = super().step_logs()
        if self.mode == "none":
            return logs
        (sums,) = sum_over_replicas([tf.convert_to_tensor(self._memory.losses)])
        names = ["adversarial_loss"] if self.mode == "adversarial" else ["clean_loss", "adversarial_loss"]
        return {**logs, **{name: sums[1 + place] / sums[0] for place, name in enumerate(names)}}

    def reset_metrics(self) -> None:
        super().reset_metrics()
        if self._memory.losses is not None:
            self._memory.losses.assign(tf.zeros([3]))

    def save(self, *arguments: Any, **keywords: Any) -> Any:
        """Saves the wrapped model: see its `save`. `save_weights` keeps what a run needs to go on."""
        return self.model.save(*arguments, **keywords)

    def export(self, *arguments: Any, **keywords: Any) -> Any:
        """Exports the wrapped model: see its `export`."""
        return self.model.export(*arguments, **keywords)

    def get_config(self) -> dict:
        own = ("staleness", "mode", "loss_weights")
        return {**super().get_config(), **{name: getattr(self, name) for name in own}}

    def _symbolic_build(self, *arguments: Any, data_batch: Tensor | None = None, **keywords: Any) -> Any:
        """Keras 3 makes the optimizer's variables in it: those of the adversarial set must exist before."""
        if not self._memory.complete:
            self._build_inner(_keras.unpack(data_batch)[0])
        return super()._symbolic_build(*arguments, data_batch=data_batch, **keywords)

    def _build(self, batch: Structure) -> None:
        x, y, _ = batch
        if not _keras.LEGACY:
            self._symbolic_build(data_batch=batch)
            return
        y_pred = self._build_inner(x)
        for container, arguments in ((self.compiled_loss, (y_pred,)), (self.compiled_metrics, (y_pred, y))):
            if not container.built:
                container.build(*arguments)

    def _build_inner(self, x: Structure) -> Structure:
        y_pred = self.model(x, training=False)
        self.built = True
        self._complete()
        return y_pred

    def _complete(self) -> None:
        """Creates what a built model needs beside its own variables, once."""
        if self._memory.complete:
            return
        with self.distribute_strategy.scope():
            if self._has_two_branches:
                self.adversarial_set.fill(self.model)
            self._memory.kept = KeptWeights(self, self.attacked_variables(), self.look_ahead)
            self._memory.losses = local_variable([3], "float32")
        self._memory.complete = True
        self._begin()

    def _begin(self) -> None:
        """Before the first step: the adversarial set is that of the model, and so are the weights of former steps."""
        self.adversarial_set.copy()
        self._memory.kept.fill()

    def _count_losses(self, losses: list, examples: int | Tensor) -> None:
        count = tf.cast(examples, tf.float32)
        values = [tf.where(count > 0, tf.cast(loss, tf.float32) * replica_count() * count, 0.0) for loss in losses]
        values += [tf.zeros([])] * (2 - len(values))
        self._memory.losses.assign_add(tf.stop_gradient(tf.stack([count, *values])))


class Memory:
    """What a model holds for training, out of sight of Keras' tracking, or tracked as weights already."""

    def __init__(self) -> None:
        self.complete = self.prepared = False
        self.kept: Any = None  # `KeptWeights` of what attacks depend on
        self.losses: Variable = None  # of the branches: [examples, sum of the main one, sum of the adversarial one]


def _pair_of_weights(weights: Sequence[float]) -> tuple[float, float]:
    values = [non_negative("loss_weights", weight) for weight in np.atleast_1d(np.asarray(weights, dtype=object))]
    if len(values) != 2:
        raise ValueError(f"`loss_weights` must be (clean, adversarial). Received: loss_weights={weights!r}")
    return values[0], values[1]
