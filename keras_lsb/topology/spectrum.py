"""What a sequence of mixing matrices does to the disagreement of the nodes, from eigenvalues."""

from collections.abc import Sequence

import numpy as np

Matrices = Sequence[np.ndarray]


def averaging_growth(matrices: Matrices) -> float:
    """Growth per step of the disagreement under plain averaging: below 1 where the nodes come to agree.

    One matrix: the second largest modulus of its eigenvalues. Several, used in turn: the spectral radius of their
    product without the consensus, to the power of 1 / their number.

    Args:
        matrices: (n, n) arrays whose rows sum to 1.
    """
    product, log_scale = np.eye(len(matrices[0])), 0.0
    for matrix in matrices:
        product, log_scale = _scaled(_disagreement(matrix @ product), log_scale)
    return _root(_spectral_radius(product), log_scale, len(matrices))


def momentum_growth(matrices: Matrices, momentum: float) -> float:
    """Growth per step of the disagreement where momentum acts on it, as in DecentLaM at a small learning rate.

    The state is (v, x): v = momentum * v + (I - W) x, then x = x - v, or in one

        [[momentum * I, I - W], [-momentum * I, W]]

    One matrix W: an eigenvalue lambda of it makes two, the roots of s^2 - (momentum + lambda) s + momentum. Several,
    used in turn: the spectral radius of the product, to the power of 1 / their number.

    Args:
        matrices: (n, n) arrays whose rows sum to 1; they need not be symmetric.
        momentum: in [0, 1).
    """
    nodes = len(matrices[0])
    if nodes == 1:
        return 0.0
    if len(matrices) == 1:
        # The consensus counts as eigenvalue 0 here: its roots have the modulus sqrt(momentum), the least there is.
        half = (momentum + _eigenvalues(_disagreement(matrices[0]))) / 2
        root = np.sqrt(half.astype("complex128") ** 2 - momentum)
        return float(np.max(np.abs([half + root, half - root])))
    state, log_scale = np.kron(np.eye(2), _disagreement(np.eye(nodes))), 0.0
    for matrix in matrices:
        velocity, position = state[:nodes], state[nodes:]
        velocity = momentum * velocity + position - _disagreement(matrix @ position)
        state, log_scale = _scaled(np.concatenate([velocity, position - velocity]), log_scale)
    return _root(_spectral_radius(state), log_scale, len(matrices))


def _disagreement(states: np.ndarray) -> np.ndarray:
    """Columns of states of the nodes, less their means."""
    return states - states.mean(0)


def _eigenvalues(matrix: np.ndarray) -> np.ndarray:
    return np.linalg.eigvalsh(matrix) if np.array_equal(matrix, matrix.T) else np.linalg.eigvals(matrix)


def _spectral_radius(matrix: np.ndarray) -> float:
    return float(np.max(np.abs(_eigenvalues(matrix))))


def _scaled(state: np.ndarray, log_scale: float) -> tuple[np.ndarray, float]:
    """The state at size 1, so that long products neither overflow nor vanish, and the logarithm of what it lost."""
    size = np.abs(state).max()
    return (state / size, log_scale + np.log(size)) if size > 0 else (state, log_scale)


def _root(radius: float, log_scale: float, steps: int) -> float:
    return float(np.exp((np.log(radius) + log_scale) / steps)) if radius > 0 else 0.0
