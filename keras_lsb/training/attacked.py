"""A model with an attack on its inputs, which makes adversarial examples from any weights and changes no state."""

import contextlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from keras_lsb import _keras
from keras_lsb._checks import whole
from keras_lsb._types import Model, Structure, Tensor, Variable
from keras_lsb.training.microbatched import Microbatched

tf = _keras.tensorflow
if tf is not None:
    from keras_lsb.training.attack import Attack, device_scope
    from keras_lsb.training.branch_losses import branch_loss
    from keras_lsb.training.branches import AdversarialSet, leaving_state, normalizations, swapped
    from keras_lsb.training.named_inputs import named_inputs, perturbed_inputs, with_inputs


class Attacked(Microbatched):
    """A model, an attack on it, and the second set of batch normalization that adversarial examples may have.

    The second set is empty until a subclass fills it; the attack then sees the main one.

    Args:
        model: a Keras model that does not override `train_step`.
        attack: settings of the attack.
        perturb, attack_training, attack_device: those of `ConAdv`.
        splitting: arguments of `Microbatched`.
    """

    def __init__(
        self,
        model: Model,
        attack: "Attack",
        *,
        perturb: str | Sequence[str] | None,
        attack_training: bool,
        attack_device: str | Sequence[str] | None,
        **splitting: Any,
    ):
        super().__init__(model, **splitting)
        self.attack = attack
        self.perturb = None if perturb is None else [str(one) for one in np.atleast_1d(perturb)]
        self.attack_training = bool(attack_training)
        self.attack_device = attack_device if attack_device is None else _devices(attack_device)
        if self.attack_device is not None:
            self.supports_jit = False
        self.adversarial_set = AdversarialSet()
        object.__setattr__(self, "_attack_function", None)  # Keras would save it with the model

    def compile(self, *arguments: Any, **keywords: Any) -> None:
        if self.attack_device is not None and keywords.get("jit_compile") is True:
            raise ValueError(
                "`jit_compile` must be False with an `attack_device`: XLA compiles for one device. "
                f"Received: jit_compile=True, attack_device={self.attack_device}"
            )
        super().compile(*arguments, **keywords)

    def craft(
        self,
        batch: Structure,
        index: int | Tensor,
        values: Iterable[tuple[Variable, Tensor]] = (),
        *,
        main_set: bool = False,
        training: bool | Tensor | None = None,
    ) -> dict:
        """Adversarial versions of a batch's inputs by name, made without a change of any state of the model.

        Args:
            batch: (x, y) or (x, y, sample_weight).
            index: number of the step that will train on it, for random numbers.
            values: pairs of a variable and the value to use instead of its own.
            main_set: whether to attack with the statistics of clean batches; those of adversarial ones otherwise.
            training: whether in training mode; `attack_training` if None.
        """
        x, y, _ = _keras.unpack(batch)
        named = named_inputs(self.model, x)
        training = self.attack_training if training is None else training

        def loss_of(images: dict, targets_of: Callable) -> Tensor:
            attacked = with_inputs(x, named, images)
            normalizing = contextlib.nullcontext() if main_set else self.adversarial_set.in_place()
            with leaving_state(self, self.adversarial_set, values), normalizing:
                y_pred = self.model(attacked, training=training)
                loss = branch_loss(self, attacked, targets_of(y_pred), y_pred)
            return tf.cast(loss, tf.float32) * tf.cast(tf.shape(_keras.leaves(x)[0])[0], tf.float32)

        with device_scope(self.attack_device), swapped(values):
            return self.attack(loss_of, perturbed_inputs(named, self.perturb), y, index)

    def adversarial_examples(self, x: Structure, y: Structure, *, batch_size: int = 128) -> Structure:
        """Adversarial versions of x, NumPy arrays in its structure, against the model as it is used.

        The attack is that of the arguments, on the present weights, with the main statistics at inference: `evaluate`
        of its result gives the accuracy under attack.

        Args:
            x, y: examples and their labels, arrays in the structure that `fit` takes.
            batch_size: examples that are attacked at a time.
        """
        function = self._attack_function
        if function is None:
            function = tf.function(self._attack_at_inference, reduce_retracing=True, autograph=False)
            object.__setattr__(self, "_attack_function", function)
        count = len(_keras.leaves(x)[0])
        starts = range(0, count, whole("batch_size", batch_size))
        found = []
        for number, start in enumerate(starts):
            batch = _keras.map_structure(
                lambda part, start=start: tf.convert_to_tensor(part[start : start + batch_size]), (x, y)
            )
            found.append(function(batch, tf.constant(number)))
        named = named_inputs(self.model, x)
        return with_inputs(x, named, {name: np.concatenate([one[name] for one in found]) for name in found[0]})

    def attacked_variables(self) -> list:
        """The variables that attacks depend on and steps change; at inference those are moving statistics too."""
        attacked = list(self.trainable_variables)
        if not self.attack_training:
            layers = self.adversarial_set.layers or normalizations(self.model)
            attacked += [variable for layer in layers for variable in layer.non_trainable_variables]
        return attacked

    def get_config(self) -> dict:
        own = ("perturb", "attack_training", "attack_device")
        return {**super().get_config(), **self.attack.get_config(), **{name: getattr(self, name) for name in own}}

    def _attack_at_inference(self, batch: Structure, index: int | Tensor) -> dict:
        return self.craft(batch, index, main_set=True, training=False)


def _devices(devices: str | Sequence[str]) -> str | list[str]:
    return devices if isinstance(devices, str) else [str(device) for device in devices]
