"""LAMB in plain float64 NumPy.

Source: You, Li, Reddi, Hseu, Kumar, Bhojanapalli, Song, Demmel, Keutzer, Hsieh, "Large Batch Optimization for Deep
Learning: Training BERT in 76 minutes", 2019, arXiv 1904.00962.
"""

import numpy as np


def lamb_step(
    weight,
    gradient,
    m,
    v,
    step,
    *,
    learning_rate=0.001,
    beta_1=0.9,
    beta_2=0.999,
    epsilon=1e-6,
    weight_decay=0.0,
    bias_correction=True,
    decay="inside",
    weight_norm_bounds=None,
    max_trust_ratio=None,
    decay_excluded=False,
    adaptation_excluded=False,
):
    """Update number `step` (1 at the first) of one variable; returns the new (weight, m, v).

    decay: "inside" adds wd * w to the update; "outside" (keras.optimizers.Lamb) does w <- w - lr wd w first, and the
        ratio then sees the decayed w and an update without decay.
    weight_norm_bounds: (low, high) to which phi clips ||w||; None is the identity. A zero w then has norm low.
    max_trust_ratio: upper bound of the ratio, also of the 1 that stands for a zero norm.
    decay_excluded: no decay. adaptation_excluded: ratio 1.
    """
    weight, gradient, m, v = (np.asarray(array, np.float64) for array in (weight, gradient, m, v))
    if decay_excluded:
        weight_decay = 0.0
    m = beta_1 * m + (1 - beta_1) * gradient
    v = beta_2 * v + (1 - beta_2) * gradient**2
    m_hat, v_hat = m, v
    if bias_correction:
        m_hat = m / (1 - beta_1**step)
        v_hat = v / (1 - beta_2**step)
    update = m_hat / (np.sqrt(v_hat) + epsilon)

    if decay == "inside":
        update = update + weight_decay * weight
    elif decay == "outside":
        weight = weight - learning_rate * weight_decay * weight
    else:
        raise ValueError(f'`decay` must be "inside" or "outside". Received: decay={decay!r}')

    ratio = 1.0
    if not adaptation_excluded:
        weight_norm = np.sqrt(np.sum(weight**2))
        update_norm = np.sqrt(np.sum(update**2))
        if weight_norm_bounds is not None:
            low, high = weight_norm_bounds
            weight_norm = min(max(weight_norm, low), high)
        if weight_norm > 0 and update_norm > 0:
            ratio = weight_norm / update_norm
        if max_trust_ratio is not None:
            ratio = min(ratio, max_trust_ratio)
    return weight - learning_rate * ratio * update, m, v
