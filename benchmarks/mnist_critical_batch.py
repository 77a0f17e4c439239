"""The critical batch size on MNIST: the sweep of `examples/critical_batch.py`, with the paper's network and plain SGD.

    python benchmarks/mnist_critical_batch.py --data-dir DATA

Batch sizes 16 to 2048, learning rates 1.5 apart, at least four at each size, three seeds at the chosen ones, in
mixed_bfloat16. Takes about an hour and a half on one core, and continues where it was stopped. Writes
`benchmarks/results/mnist_critical_batch.json` and `docs/images/mnist_pareto.png`.
"""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent
FLAGS = ("--policy", "mixed_bfloat16", "--spacing", "1.5")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", required=True, help="folder with MNIST of tensorflow-datasets")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path("runs/mnist_critical_batch"), help="keeps finished runs")
    arguments = parser.parse_args()
    command = [sys.executable, str(ROOT.parent / "examples" / "critical_batch.py"), *FLAGS]
    command += [
        "--data-dir",
        arguments.data_dir,
        "--threads",
        str(arguments.threads),
        "--output",
        str(arguments.output),
    ]
    subprocess.run(command, check=True)
    found = json.loads((arguments.output / "critical_batch.json").read_text())
    result = {"versions": found["versions"], "policy": found["policy"], "rows": found["fits"], "steps": found["steps"]}
    (ROOT / "results" / "mnist_critical_batch.json").write_text(json.dumps(result, indent=1) + "\n")
    shutil.copy(arguments.output / "pareto.png", ROOT.parent / "docs" / "images" / "mnist_pareto.png")


if __name__ == "__main__":
    main()
