"""AdamP as a Keras optimizer."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

from keras_lsb import _keras, rules
from keras_lsb._checks import decay_rate, non_negative
from keras_lsb._types import Schedule, Tensor
from keras_lsb.optimizers.base import RuleOptimizer
from keras_lsb.optimizers.exclusions import Exclusion, deserialize_selection, serialize_selection

ChannelAxes = Mapping[str, Sequence[int]] | Callable[[str], Sequence[int]]


@_keras.register
class AdamP(RuleOptimizer):
    """Adam that does not waste its momentum on the norm of scale-invariant weights.

        p = m / (sqrt(v) / sqrt(1 - beta_2**t) + epsilon)                m, v: Adam's moments
        p, ratio = projected p, wd_ratio           where the projection fires, else p, 1
        weight = weight * (1 - learning_rate * weight_decay * ratio) - learning_rate / (1 - beta_1**t) * p

    The projection takes out of each output channel's step (or of the whole layer's) the part along the weights, if the
    gradient is nearly orthogonal to the weights in every channel (in the layer). Vectors and scalars are never
    projected.

    Args:
        learning_rate: a number >= 0, or a schedule of steps such as `keras_lsb.schedules.LEGW`.
        beta_1, beta_2: decay rates of the two moments, in [0, 1).
        epsilon: at least 0.
        weight_decay: decoupled decay as in AdamW, >= 0.
        delta: threshold of the projection's cosine, >= 0; 0 never projects, which leaves AdamW.
        wd_ratio: factor of the decay where the projection fires, >= 0.
        nesterov: whether p takes Nesterov's momentum.
        exclude_from_weight_decay: patterns searched in the variable's path, or a predicate of the path, a string that
            also has the variable's `shape` and `dtype`. None excludes biases and normalization parameters, [] nothing.
        exclude_from_layer_adaptation: likewise, for variables that must not be projected.
        channel_axes: which axes of a kernel number its output channels. None is the last axis, right for dense and
            convolution kernels. A variable does not tell its layer, so name the exceptions: a mapping from patterns
            to axes, e.g. `{"depthwise": (-2, -1), "embeddings": (0,)}`, or a function of the path. Attention's
            three-dimensional kernels number theirs by the last two.
        name: name of the optimizer.
        **kwargs: `fused=False` turns off the compiled update of large variables on TensorFlow; the rest is Keras' own:
            clipnorm, clipvalue, global_clipnorm, use_ema, ema_momentum, ema_overwrite_frequency, ...

    Raises:
        ValueError: an argument out of range; the message names it and its value.

    Source: Heo, Chun, Oh, Han, Yun, Kim, Uh, Ha, ICLR 2021, arXiv 2006.08217.
    """

    slot_names = ("m", "v")
    # Compiled by XLA for CPUs, the projection takes longer than TensorFlow's own ops, and long to compile.
    fuse_from = math.inf

    def __init__(
        self,
        learning_rate: float | Schedule = 0.001,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
        weight_decay: float = 0.0,
        delta: float = 0.1,
        wd_ratio: float = 0.1,
        nesterov: bool = False,
        exclude_from_weight_decay: Exclusion = None,
        exclude_from_layer_adaptation: Exclusion = None,
        channel_axes: ChannelAxes | None = None,
        name: str = "AdamP",
        **kwargs: Any,
    ):
        super().__init__(
            learning_rate, weight_decay, exclude_from_weight_decay, exclude_from_layer_adaptation, name, **kwargs
        )
        self.beta_1 = decay_rate("beta_1", beta_1)
        self.beta_2 = decay_rate("beta_2", beta_2)
        self.epsilon = non_negative("epsilon", epsilon)
        self.delta = non_negative("delta", delta)
        self.wd_ratio = non_negative("wd_ratio", wd_ratio)
        self.nesterov = bool(nesterov)
        self.channel_axes = _check_channel_axes(channel_axes)

    def rule(
        self,
        weight: Tensor,
        gradient: Tensor,
        *slots: Tensor,
        learning_rate: Tensor,
        step: Tensor,
        weight_decay: float,
        adapt: bool,
        **options: Any,
    ) -> tuple:
        return rules.adamp(
            weight,
            gradient,
            *slots,
            learning_rate=learning_rate,
            step=step,
            weight_decay=weight_decay,
            adapt=adapt,
            **options,
            beta_1=self.beta_1,
            beta_2=self.beta_2,
            epsilon=self.epsilon,
            delta=self.delta,
            weight_decay_ratio=self.wd_ratio,
            nesterov=self.nesterov,
        )

    def hyperparameters(self) -> dict:
        return {
            "beta_1": self.beta_1,
            "beta_2": self.beta_2,
            "epsilon": self.epsilon,
            "delta": self.delta,
            "wd_ratio": self.wd_ratio,
            "nesterov": self.nesterov,
            "channel_axes": serialize_selection(self.channel_axes),
        }

    @classmethod
    def from_config(cls, config: dict, custom_objects: dict | None = None) -> Self:
        axes = deserialize_selection(config.get("channel_axes"), custom_objects)
        return super().from_config({**config, "channel_axes": axes}, custom_objects=custom_objects)

    def patterns(self) -> dict:
        return {**super().patterns(), "channel_axes": self.channel_axes}

    def options(self, path: str) -> dict:
        if callable(self.channel_axes):
            return {"channel_axes": tuple(self.channel_axes(path))}
        matching = (axes for pattern, axes in self.channel_axes.items() if re.search(pattern, path))
        return {"channel_axes": tuple(next(matching, (-1,)))}


def _check_channel_axes(channel_axes: ChannelAxes | None) -> ChannelAxes:
    if callable(channel_axes):
        return channel_axes
    try:
        for pattern, axes in dict(channel_axes or {}).items():
            re.compile(pattern)
            [axis.__index__() for axis in axes]
    except (TypeError, ValueError, AttributeError, re.error) as error:
        raise ValueError(
            "`channel_axes` must be a mapping from regular expressions to tuples of axes, or a function of the path: "
            f"{error}. Received: channel_axes={channel_axes!r}"
        ) from error
    return {pattern: list(axes) for pattern, axes in dict(channel_axes or {}).items()}
