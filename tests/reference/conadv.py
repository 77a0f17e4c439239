"""ConAdv in plain float64 NumPy, for one small network whose gradients are written out by hand.

    dense -> batch normalization -> tanh -> dense -> softmax cross entropy

Source: Liu et al., "Concurrent Adversarial Learning for Large-Batch Training", ICLR 2022, arXiv 2106.00221,
algorithm 1.
"""

from collections import deque
from dataclasses import dataclass, field

import numpy as np

BN_EPSILON = 1e-3
MAIN, ADVERSARIAL = "main", "adversarial"


@dataclass(frozen=True)
class Rule:
    """What a run is made of; `targets[t]` are the labels that the attack on batch t descends to, None to ascend."""

    epsilon: object = 0.25
    step_size: object = None
    attack_steps: int = 1
    staleness: int = 1
    mode: str = "concurrent"
    loss_weights: tuple = (1.0, 1.0)
    value_range: tuple | None = None
    targets: list | None = None
    attack_training: bool = True
    learning_rate: float = 0.1
    momentum: float = 0.9
    l2: float = 0.0
    bn_momentum: float = 0.75


@dataclass
class State:
    """Weights by name, those of batch normalization as (set, name); their velocities; moving statistics likewise."""

    weights: dict
    moving: dict
    velocity: dict = field(default_factory=dict)

    def copy(self):
        return State(dict(self.weights), dict(self.moving), dict(self.velocity))


@dataclass
class Step:
    """What happened in one step: the examples, mean losses without weights and penalty, and the weights after it."""

    examples: np.ndarray
    clean_loss: float
    adversarial_loss: float
    loss: float
    size: int
    weights: dict
    moving: dict


def start(kernel, bias, gamma, beta, moving_mean, moving_variance, output_kernel, output_bias) -> State:
    """Both sets begin alike."""
    weights = {"kernel": kernel, "bias": bias, "output_kernel": output_kernel, "output_bias": output_bias}
    moving = {}
    for name in (MAIN, ADVERSARIAL):
        weights |= {(name, "gamma"): gamma, (name, "beta"): beta}
        moving |= {(name, "mean"): moving_mean, (name, "variance"): moving_variance}
    as_double = [{key: np.array(value, np.float64) for key, value in part.items()} for part in (weights, moving)]
    return State(*as_double)


def forward(state: State, x, name: str, training: bool = True) -> dict:
    """A pass with the set `name`; all that the way back needs."""
    weights = state.weights
    hidden = x @ weights["kernel"] + weights["bias"]
    if training:
        mean, variance = hidden.mean(axis=0), hidden.var(axis=0)
    else:
        mean, variance = state.moving[name, "mean"], state.moving[name, "variance"]
    root = np.sqrt(variance + BN_EPSILON)
    normal = (hidden - mean) / root
    active = np.tanh(weights[name, "gamma"] * normal + weights[name, "beta"])
    logits = active @ weights["output_kernel"] + weights["output_bias"]
    logits -= logits.max(axis=1, keepdims=True)
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return {
        "x": x,
        "mean": mean,
        "variance": variance,
        "root": root,
        "normal": normal,
        "active": active,
        "log_p": log_p,
    }


def losses_of(passed: dict, y):
    """Cross entropy of each example; `y` are probabilities of the classes."""
    return -(y * passed["log_p"]).sum(axis=1)


def backward(state: State, passed: dict, y, factors, name: str, training: bool = True):
    """(gradients of the weights, gradient of x) of the sum of `factors` * losses."""
    weights = state.weights
    into_logits = factors[:, None] * (np.exp(passed["log_p"]) * y.sum(axis=1, keepdims=True) - y)
    into_active = into_logits @ weights["output_kernel"].T
    into_affine = into_active * (1 - passed["active"] ** 2)
    into_normal = into_affine * weights[name, "gamma"]
    if training:
        normal = passed["normal"]
        along = normal * (into_normal * normal).mean(axis=0)
        into_hidden = (into_normal - into_normal.mean(axis=0) - along) / passed["root"]
    else:
        into_hidden = into_normal / passed["root"]
    gradients = {
        "kernel": passed["x"].T @ into_hidden,
        "bias": into_hidden.sum(axis=0),
        (name, "gamma"): (into_affine * passed["normal"]).sum(axis=0),
        (name, "beta"): into_affine.sum(axis=0),
        "output_kernel": passed["active"].T @ into_logits,
        "output_bias": into_logits.sum(axis=0),
    }
    return gradients, into_hidden @ weights["kernel"].T


def attacked_set(rule: Rule) -> str:
    return ADVERSARIAL if rule.mode in ("concurrent", "sequential") else MAIN


def attack(state: State, batch, rule: Rule, index: int):
    """(adversarial version of batch `index` against `state`, smallest size of a gradient on the way)."""
    x, y, _ = batch
    epsilon = np.asarray(rule.epsilon, np.float64)
    step = epsilon / rule.attack_steps if rule.step_size is None else np.asarray(rule.step_size, np.float64)
    direction = 1.0
    if rule.targets is not None:
        y, direction = rule.targets[index], -1.0
    low, high = x - epsilon, x + epsilon
    if rule.value_range is not None:
        low, high = np.maximum(low, rule.value_range[0]), np.minimum(high, rule.value_range[1])
    image, smallest = x.copy(), np.inf
    for _ in range(rule.attack_steps):
        passed = forward(state, image, attacked_set(rule), rule.attack_training)
        _, gradient = backward(state, passed, y, np.ones(len(x)), attacked_set(rule), rule.attack_training)
        smallest = min(smallest, np.abs(gradient).min())
        image = np.clip(image + direction * step * np.sign(gradient), low, high)
    return image, smallest


def update(state: State, batch, examples, rule: Rule) -> Step:
    """Trains on a clean batch and its adversarial version, in place."""
    x, y, weights_of_examples = batch
    passes = {
        "concurrent": [(x, MAIN, rule.loss_weights[0]), (examples, ADVERSARIAL, rule.loss_weights[1])],
        "adversarial": [(examples, MAIN, rule.loss_weights[1])],
        "none": [(x, MAIN, 1.0)],
    }["concurrent" if rule.mode == "sequential" else rule.mode]
    gradients = {key: np.zeros_like(value) for key, value in state.weights.items()}
    means, total = [], rule.l2 * (state.weights["kernel"] ** 2).sum()
    gradients["kernel"] += 2 * rule.l2 * state.weights["kernel"]
    for inputs, name, weight in passes:
        passed = forward(state, inputs, name)
        means.append((weights_of_examples * losses_of(passed, y)).mean())
        total += weight * means[-1]
        found, _ = backward(state, passed, y, weight * weights_of_examples / len(x), name)
        for key, value in found.items():
            gradients[key] += value
        for key in ("mean", "variance"):
            kept = rule.bn_momentum * state.moving[name, key]
            state.moving[name, key] = kept + (1 - rule.bn_momentum) * passed[key]
    for key, gradient in gradients.items():
        velocity = rule.momentum * state.velocity.get(key, 0.0) - rule.learning_rate * gradient
        state.velocity[key] = velocity
        state.weights[key] = state.weights[key] + velocity
    clean, adversarial = (means[0], means[-1]) if len(means) == 2 else (means[0], means[0])
    return Step(examples, clean, adversarial, total, len(x), dict(state.weights), dict(state.moving))


def _distance(rule: Rule) -> int:
    return 0 if rule.mode in ("sequential", "none") else rule.staleness


def train_with_stale_weights(state: State, batches: list, rule: Rule) -> list[Step]:
    """Attacks each batch when it comes, with the weights of some steps before, of which as many are kept."""
    state, smallest, steps = state.copy(), np.inf, []
    kept = deque([state.copy()] * (_distance(rule) + 1), maxlen=_distance(rule) + 1)
    for index, batch in enumerate(batches):
        kept.append(state.copy())
        examples, found = attack(kept[0], batch, rule, index)
        smallest = min(smallest, found)
        steps.append(update(state, batch, examples, rule))
    assert smallest > 1e-7 or rule.mode == "none", f"signs that rounding decides: {smallest}"
    return steps


def train_ahead(state: State, batches: list, rule: Rule) -> list[Step]:
    """Attacks each batch some steps before it comes, with the weights of then; a queue holds batches and examples."""
    state, steps, distance = state.copy(), [], _distance(rule)
    queue = deque((batch, attack(state, batch, rule, t)[0]) for t, batch in enumerate(batches[:distance]))
    for index in range(len(batches)):
        ahead = index + distance
        if ahead < len(batches):
            queue.append((batches[ahead], attack(state, batches[ahead], rule, ahead)[0]))
        batch, examples = queue.popleft()
        steps.append(update(state, batch, examples, rule))
    return steps
