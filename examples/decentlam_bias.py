"""How far momentum moves decentralized nodes from the optimum of all data: DmSGD and DecentLaM at five momenta.

    python examples/decentlam_bias.py

Eight nodes on a ring, each with a least-squares problem of its own and full gradients, so that nothing but the bias is
left when the weights have come to rest. It is the mean over the nodes of ||x_i - x*||^2 / ||x*||^2, where x* is the
optimum of all data, and the table divides it by that of momentum 0, which is decentralized SGD.

Ends with an error unless DecentLaM's bias is the same at every momentum, and DmSGD's grows as 1 / (1 - momentum)^2 at
the smallest learning rate. Prints a table, and writes decentlam_bias.json and decentlam_bias.png. Takes seconds.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

import common
import numpy as np

from keras_lsb import topology

NODES = 8
MOMENTA = (0.0, 0.5, 0.8, 0.9, 0.95)
LEARNING_RATES = (1e-3, 1e-4, 1e-5)
METHODS = ("DecentLaM", "DmSGD")
COLORS = {"DecentLaM": "#0072b2", "DmSGD": "#d55e00"}
DECAY = 12.0  # how often the slowest part of the distance to the fixed point falls by a factor of e
LEAST_STEPS = 1000  # for the disagreement of the nodes, which fades at a rate of its own
CONSTANT, LIMIT = 1e-6, 0.1  # claimed: relative errors of the ratios 1 and 1 / (1 - momentum)^2


def problem() -> tuple[Callable, np.ndarray, float]:
    """Gradients of the nodes, the optimum of all data, and the smallest curvature of their mean loss.

    Node i has the loss ||A_i x - b_i||^2 / 2 with 50 equations for 30 unknowns.
    """
    random = np.random.default_rng(0)
    truth = random.standard_normal(30)
    a = random.standard_normal((NODES, 50, 30))
    b = a @ truth + 0.1 * random.standard_normal((NODES, 50))
    curvatures, slopes = a.swapaxes(1, 2) @ a, np.einsum("nri,nr->ni", a, b)

    def gradients(weights, step):
        return (curvatures @ weights[:, :, None])[:, :, 0] - slopes

    optimum = np.linalg.solve(curvatures.sum(0), slopes.sum(0))
    return gradients, optimum, float(np.linalg.eigvalsh(curvatures.mean(0))[0])


def bias(method: str, learning_rate: float, momentum: float) -> float:
    """The relative squared distance from the optimum at which the nodes come to rest when they start there."""
    gradients, optimum, curvature = problem()
    steps = LEAST_STEPS + round(DECAY * (1 - momentum) / (learning_rate * curvature))
    run = topology.simulate(
        topology.ring(NODES),
        gradients,
        optimum,
        method=method,
        learning_rate=learning_rate,
        momentum=momentum,
        steps=steps,
        record_every=steps,
    )
    return float(np.mean(np.sum((run.weights - optimum) ** 2, axis=1)) / np.sum(optimum**2))


def compare(learning_rate: float) -> list[dict]:
    """A row for each momentum: the bias of both methods, and its ratio to that of momentum 0."""
    found = [{method: bias(method, learning_rate, momentum) for method in METHODS} for momentum in MOMENTA]
    return [
        {
            "learning_rate": learning_rate,
            "momentum": momentum,
            **biases,
            **{f"{method}_ratio": biases[method] / found[0][method] for method in METHODS},
            "limit": 1 / (1 - momentum) ** 2,
        }
        for momentum, biases in zip(MOMENTA, found, strict=True)
    ]


def claim(rows: list[dict]) -> str:
    """What the ratios show. Ends the process with an error if that is not what was claimed."""
    smallest = [row for row in rows if row["learning_rate"] == min(LEARNING_RATES)]
    constant = max(abs(row["DecentLaM_ratio"] - 1) for row in rows)
    growing = max(abs(row["DmSGD_ratio"] / row["limit"] - 1) for row in smallest)
    text = (
        f"DecentLaM's bias depends on the momentum by {constant:.1g} of itself, {CONSTANT:g} claimed.\n"
        f"DmSGD's at rate {min(LEARNING_RATES):g} is 1 / (1 - momentum)^2 times that of 0 within {growing:.1%}, "
        f"{LIMIT:.0%} claimed"
    )
    if not (constant <= CONSTANT and growing <= LIMIT):
        sys.exit(f"{text}: FAILED.")
    return f"{text}: passed."


def table(rows: list[dict]) -> str:
    lines = [f"{'rate':>6} {'momentum':>8} {'DecentLaM':>10} {'ratio':>6} {'DmSGD':>10} {'ratio':>7} {'limit':>6}"]
    for row in rows:
        lines.append(
            f"{row['learning_rate']:6g} {row['momentum']:8g} {row['DecentLaM']:10.4e} {row['DecentLaM_ratio']:6.4f} "
            f"{row['DmSGD']:10.4e} {row['DmSGD_ratio']:7.2f} {row['limit']:6.0f}"
        )
    return "\n".join(lines)


def plot(rows: list[dict], path: Path) -> None:
    """The ratios against 1 / (1 - momentum)^2, a line for each learning rate."""
    limits = [row["limit"] for row in rows if row["learning_rate"] == LEARNING_RATES[0]]
    ticks = [f"{limit:.0f}\n({momentum:g})" for limit, momentum in zip(limits, MOMENTA, strict=True)]
    with common.picture(path) as axes:
        axes.plot(limits, limits, "--", color="#777777", label="1 / (1 - momentum)$^2$")
        for method in METHODS:
            for learning_rate, marker in zip(LEARNING_RATES, "osD", strict=True):
                ratios = [row[f"{method}_ratio"] for row in rows if row["learning_rate"] == learning_rate]
                label = f"{method}, learning rate {learning_rate:g}"
                axes.plot(limits, ratios, marker=marker, markersize=5, alpha=0.8, color=COLORS[method], label=label)
        axes.set(xscale="log", yscale="log")
        axes.set(xlabel="1 / (1 - momentum)$^2$, below it the momentum", ylabel="bias over that of momentum 0")
        axes.set_xticks(limits, ticks)
        axes.minorticks_off()
        axes.legend()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/decentlam_bias"), help="folder for table and plot")
    arguments = parser.parse_args()
    rows = [row for learning_rate in LEARNING_RATES for row in compare(learning_rate)]
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "decentlam_bias.json").write_text(
        json.dumps({"versions": common.versions(), "rows": rows}, indent=1) + "\n"
    )
    plot(rows, arguments.output / "decentlam_bias.png")
    print(table(rows))
    print(claim(rows))


if __name__ == "__main__":
    main()
