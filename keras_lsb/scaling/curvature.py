"""Curvature along the gradient, and the noise scale that weighs noise with the Hessian.

Sources: McCandlish et al., 2018, arXiv 1812.06162, equations 2.7 and 2.8; You et al., 2019, arXiv 1901.08256, for the
local Lipschitz constant along the gradient, whose peak early in training is why larger batches warm up longer.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from keras_lsb.scaling.noise_scale import noise_to_signal, signal_and_noise


class Curvature(NamedTuple):
    """What Hessian-vector products with the gradient g of a batch say.

    Attributes:
        lipschitz: |g'Hg| / |g|^2, the local Lipschitz constant of the gradient along itself.
        best_learning_rate: |G|^2 / G'HG, the best step of gradient descent without noise; inf where G'HG <= 0.
        noise: B_noise = tr(H Sigma) / G'HG, in examples; NaN where only g was multiplied.
        simple: B_simple = tr(Sigma) / |G|^2 of the same gradients, in examples; NaN likewise.
    """

    lipschitz: float
    best_learning_rate: float
    noise: float
    simple: float


def curvature(forms: ArrayLike, sq_norms: ArrayLike, batch_sizes: Sequence[float]) -> Curvature:
    """Curvature and both noise scales from quadratic forms of gradients.

    Args:
        forms: g'Hg of the gradient of the whole batch, then of each of its equal parts; the parts may be left out.
        sq_norms: |g|^2 of the same gradients.
        batch_sizes: `(examples in a part, examples in the whole batch)`.

    Examples:
        >>> curvature([10.0, 46 / 3], [5.0, 23 / 3], (4, 12))
        Curvature(lipschitz=2.0, best_learning_rate=0.5, noise=4.363636363636364, simple=4.363636363636364)
    """
    forms, sq_norms = np.asarray(forms, "float64"), np.asarray(sq_norms, "float64")
    lipschitz = abs(forms[0]) / sq_norms[0] if sq_norms[0] > 0 else math.nan
    if len(forms) == 1:
        rate = sq_norms[0] / forms[0] if forms[0] > 0 else math.inf
        return Curvature(float(lipschitz), float(rate), math.nan, math.nan)
    form, form_noise = signal_and_noise(forms[1:].mean(), forms[0], *batch_sizes)
    sq_norm, trace = signal_and_noise(sq_norms[1:].mean(), sq_norms[0], *batch_sizes)
    rate = sq_norm / form if form > 0 else math.inf
    noise, simple = noise_to_signal(form_noise, form), noise_to_signal(trace, sq_norm)
    return Curvature(*map(float, (lipschitz, rate, noise, simple)))
