"""Decentralized momentum SGD in plain float64 NumPy: eight methods on a dense mixing matrix, and a problem with a bias.

Sources: Yuan, Chen, Huang, Zhang, Pan, Xu, Yin, "DecentLaM", 2021, arXiv 2104.11981, and the methods it compares with.
The weights of all nodes are the rows of x, so that the neighbours' average of x is W @ x.
"""

import numpy as np


def metropolis(nodes, edges):
    """Mixing matrix of an undirected graph: 1 / max(c_i, c_j) with c = 1 + the number of neighbours."""
    matrix = np.zeros((nodes, nodes))
    neighbours = [{j for edge in edges for j in edge if i in edge and j != i} for i in range(nodes)]
    for i in range(nodes):
        for j in neighbours[i]:
            matrix[i, j] = 1 / (1 + max(len(neighbours[i]), len(neighbours[j])))
        matrix[i, i] = 1 - matrix[i].sum()
    return matrix


def ring(nodes):
    """Mixing matrix of a ring of three nodes or more."""
    return metropolis(nodes, [(i, (i + 1) % nodes) for i in range(nodes)])


def grid(rows, columns):
    """Mixing matrix of a grid, numbered row by row, that does not wrap around."""
    places = [(row, column) for row in range(rows) for column in range(columns)]
    near = [(a, b) for a in places for b in places if abs(a[0] - b[0]) + abs(a[1] - b[1]) == 1]
    return metropolis(rows * columns, [(places.index(a), places.index(b)) for a, b in near])


class State:
    """Weights x, momentum m in gradient units, and whatever else a method keeps."""

    def __init__(self, start):
        self.x = np.array(start, "float64")
        self.m = np.zeros_like(self.x)
        self.step = 0
        self.slow_x, self.slow_u = self.x.mean(0), np.zeros_like(self.x[0])
        self.previous_x = self.previous_m = None


def pmsgd(s, g, w, gamma, beta):
    s.m = beta * s.m + np.ones_like(w) @ g / len(w)
    s.x = s.x - gamma * s.m


def dsgd(s, g, w, gamma, beta):
    s.x = w @ (s.x - gamma * g)


def dmsgd(s, g, w, gamma, beta):
    s.m = beta * s.m + g
    s.x = w @ (s.x - gamma * s.m)


def awc_dmsgd(s, g, w, gamma, beta):
    s.m = beta * s.m + g
    s.x = w @ s.x - gamma * s.m


def da_dmsgd(s, g, w, gamma, beta):
    s.m = w @ (beta * s.m + g)
    s.x = w @ (s.x - gamma * s.m)


def qg_dmsgd(s, g, w, gamma, beta):
    moved = w @ (s.x - gamma * (beta * s.m + g))
    s.m = beta * s.m + (1 - beta) * (s.x - moved) / gamma
    s.x = moved


def d2_dmsgd(s, g, w, gamma, beta):
    m = beta * s.m + g
    before = s.x
    if s.step == 0:
        s.x = w @ (s.x - gamma * m)
    else:
        s.x = w @ (2 * s.x - s.previous_x - gamma * (m - s.m))
    s.m, s.previous_x = m, before


def slowmo(s, g, w, gamma, beta):
    dmsgd(s, g, w, gamma, beta)
    if s.step % 12 == 11:
        s.slow_u = 0.7 * s.slow_u + (s.slow_x - s.x.mean(0)) / gamma
        s.slow_x = s.slow_x - gamma * s.slow_u
        s.x, s.m = np.tile(s.slow_x, (len(w), 1)), np.zeros_like(s.m)


def decentlam(s, g, w, gamma, beta):
    corrected = (s.x - w @ (s.x - gamma * g)) / gamma
    s.m = beta * s.m + corrected
    s.x = s.x - gamma * s.m


METHODS = {
    "PmSGD": pmsgd,
    "DSGD": dsgd,
    "DmSGD": dmsgd,
    "AWC-DmSGD": awc_dmsgd,
    "DA-DmSGD": da_dmsgd,
    "QG-DmSGD": qg_dmsgd,
    "SlowMo": slowmo,
    "D2-DmSGD": d2_dmsgd,
    "DecentLaM": decentlam,
}


def run(method, gradients, start, matrices, gamma, beta, steps):
    """Weights of all nodes after so many steps.

    gradients: function of x and the step. matrices: mixing matrices used in turn. gamma: a number > 0 or a function of
    the step. Weight decay belongs into the gradients.
    """
    state = State(start)
    for step in range(steps):
        state.step = step
        rate = gamma(step) if callable(gamma) else gamma
        METHODS[method](state, gradients(state.x, step), matrices[step % len(matrices)], rate, beta)
    return state.x


class LeastSquares:
    """Node i has the loss ||A_i x - b_i||^2 / 2, so that each has a minimum of its own; x* is that of their sum."""

    def __init__(self, nodes=8, rows=50, columns=30, noise=0.1, seed=0):
        random = np.random.default_rng(seed)
        truth = random.standard_normal(columns)
        self.a = random.standard_normal((nodes, rows, columns))
        self.b = self.a @ truth + noise * random.standard_normal((nodes, rows))
        self.start = np.zeros((nodes, columns))
        self.hessians = np.einsum("nri,nrj->nij", self.a, self.a)
        self.slopes = np.einsum("nri,nr->ni", self.a, self.b)
        self.optimum = np.linalg.solve(self.hessians.sum(0), self.slopes.sum(0))

    def gradients(self, x, step=0):
        return np.einsum("nij,nj->ni", self.hessians, x) - self.slopes

    def error(self, x):
        """Mean over the nodes of ||x_i - x*||^2 / ||x*||^2."""
        return np.mean(np.sum((x - self.optimum) ** 2, 1)) / np.sum(self.optimum**2)

    def fixed_point(self, method, w, gamma, beta):
        """Where a method comes to rest, by one linear solve of (I - W) x = -c M g(x)."""
        identity = np.eye(len(w))
        factor, mixing = {
            "DSGD": (gamma, w),
            "DecentLaM": (gamma, w),
            "QG-DmSGD": (gamma, w),
            "DmSGD": (gamma / (1 - beta), w),
            "AWC-DmSGD": (gamma / (1 - beta), identity),
            "DA-DmSGD": (gamma, w @ np.linalg.inv(identity - beta * w) @ w),
        }[method]
        nodes, columns = self.start.shape
        # Node i's equations: sum_j (I - W)_ij x_j + c M_ij (H_j x_j - s_j) = 0.
        left = np.einsum("ij,kl->ikjl", identity - w, np.eye(columns))
        left = left + factor * np.einsum("ij,jkl->ikjl", mixing, self.hessians)
        right = factor * mixing @ self.slopes
        return np.linalg.solve(left.reshape(nodes * columns, -1), right.ravel()).reshape(nodes, columns)
