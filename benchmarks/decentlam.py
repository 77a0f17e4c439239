"""DecentLaM: its bias on least squares, and its accuracy on MNIST where each node sees two digits or three.

    python benchmarks/decentlam.py --data-dir DATA

Runs `examples/decentlam_bias.py` and `examples/decentlam_mnist.py` as they are, and keeps what they find in
`benchmarks/results/` and `docs/images/`, as decentlam_bias and decentlam_mnist. Takes about ten minutes on one core,
and continues where it was stopped.
"""

import argparse
import itertools
import json
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent
IMAGES = ROOT.parent / "docs" / "images"
METHODS = ("DecentLaM", "DmSGD", "PmSGD")


def run(name: str, output: Path, *flags: str) -> None:
    command = [sys.executable, str(ROOT.parent / "examples" / f"{name}.py"), "--output", str(output), *flags]
    subprocess.run(command, check=True)


def keep(name: str, output: Path) -> None:
    """Keeps the table and the picture that an example has left in a folder."""
    found = json.loads((output / f"{name}.json").read_text())
    result = {key: found[key] for key in ("versions", "rows")}
    (ROOT / "results" / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    shutil.copy(output / f"{name}.png", IMAGES / f"{name}.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", required=True, help="folder with MNIST of tensorflow-datasets")
    parser.add_argument("--seeds", nargs="+", default=["0", "1", "2"])
    parser.add_argument("--output", type=Path, default=Path("runs/decentlam"), help="keeps finished runs")
    arguments = parser.parse_args()
    run("decentlam_bias", arguments.output)
    keep("decentlam_bias", arguments.output)
    flags = ["--data-dir", arguments.data_dir]
    for method, seed in itertools.product(METHODS, arguments.seeds):
        # One process each: what tf.data has on many devices takes minutes to end where it has lived for long.
        run("decentlam_mnist", arguments.output, *flags, "--methods", method, "--seeds", seed)
    run("decentlam_mnist", arguments.output, *flags, "--seeds", *arguments.seeds)
    keep("decentlam_mnist", arguments.output)


if __name__ == "__main__":
    main()
