"""LEGW on the MNIST LSTM: every batch size, rule and seed, from one recipe tuned at batch 128 alone.

    python benchmarks/mnist_lstm.py --data-dir DATA --tune
    python benchmarks/mnist_lstm.py --data-dir DATA

--tune runs a grid of learning rates at batch 128 on training examples kept aside and writes
`benchmarks/results/mnist_lstm_tuning.json`; its best is the default of the example. Without it, the script runs
`examples/mnist_lstm.py` once for each combination and writes `benchmarks/results/mnist_lstm.json` and the figure in the
documentation. One process and one thread a run, `--jobs` at a time; finished runs are kept and skipped, so it can be
stopped and started again.
"""

import argparse
import itertools
from pathlib import Path

import sweep

ROOT = Path(__file__).resolve().parent
BATCH_SIZES = (128, 1024, 4096, 8192)
RULES = ("legw", "linear", "linear-warmup", "sqrt")
SEEDS = (0, 1, 2)
TUNING_RATES = (0.05, 0.1, 0.2)
TUNING_EPOCHS = 10
COLORS = {"legw": "#0072b2", "linear": "#d55e00", "linear-warmup": "#e69f00", "sqrt": "#009e73"}


def combinations(rules):
    """Flags of every run, the ones that decide an acceptance line first. At the base batch all rules are LEGW's."""
    base = [("legw", 128)]
    scaled = [(rule, batch) for rule, batch in itertools.product(rules, BATCH_SIZES[1:])]
    legw = base + [run for run in scaled if run[0] == "legw"]
    others = [run for run in scaled if run[0] != "legw"]
    for group in (legw, others):
        for seed in SEEDS:
            for rule, batch in group:
                yield ["--method", rule, "--batch-size", str(batch), "--seeds", str(seed)]


def plot(rows: list[dict], target: Path) -> None:
    """Test error against batch size for each rule, with the range over seeds; the base batch belongs to all."""
    from matplotlib import pyplot

    base = [row for row in rows if row["batch_size"] == BATCH_SIZES[0]]
    figure, axes = pyplot.subplots(figsize=(7, 4.2), layout="constrained")
    for rule in RULES:
        points = base + [row for row in rows if row["method"] == rule and row not in base]
        if len(points) > len(base):
            errors = [100 - row["mean"] for row in points]
            ranges = [
                [row["highest"] - row["mean"] for row in points],
                [row["mean"] - row["lowest"] for row in points],
            ]
            batches = [row["batch_size"] for row in points]
            axes.errorbar(batches, errors, yerr=ranges, marker="o", capsize=3, color=COLORS[rule], label=rule)
    axes.axhline(100 - base[0]["mean"], color="grey", linestyle=":", linewidth=1)
    axes.set_xscale("log", base=2)
    axes.set_xticks(BATCH_SIZES, [str(batch) for batch in BATCH_SIZES])
    axes.set_yscale("log")
    axes.set_yticks([1, 2, 5, 10, 20, 50, 90], ["1", "2", "5", "10", "20", "50", "90"])
    axes.minorticks_off()
    axes.set(xlabel="batch size", ylabel="test error, % (mean and range over seeds)")
    axes.set_title("MNIST LSTM, 25 epochs, one recipe tuned at batch 128", fontsize=11)
    axes.legend()
    figure.savefig(target, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", required=True, help="folder of tensorflow-datasets with MNIST prepared")
    parser.add_argument("--tune", action="store_true", help="the grid at batch 128 instead of the sweep")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--rules", nargs="+", choices=RULES, default=list(RULES))
    parser.add_argument("--output", type=Path, default=Path("runs/mnist_lstm"))
    arguments = parser.parse_args()
    if arguments.tune:
        runs = [["--hold-out", "--epochs", str(TUNING_EPOCHS), "--learning-rate", str(rate)] for rate in TUNING_RATES]
        output, target = arguments.output / "tuning", ROOT / "results" / "mnist_lstm_tuning.json"
        sweep.run_all("mnist_lstm.py", runs, arguments.data_dir, output, arguments.jobs)
        sweep.summarize(output, target, metric="accuracy", scale=100)
        return
    runs = list(combinations(arguments.rules))
    sweep.run_all("mnist_lstm.py", runs, arguments.data_dir, arguments.output, arguments.jobs)
    rows = sweep.summarize(arguments.output, ROOT / "results" / "mnist_lstm.json", metric="accuracy", scale=100)
    plot(rows, ROOT.parent / "docs" / "images" / "mnist_lstm.png")


if __name__ == "__main__":
    main()
