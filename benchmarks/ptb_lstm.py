"""LEGW on the Penn Treebank LSTM: batch 20 (the published recipe), 160 and 640.

    python benchmarks/ptb_lstm.py --data-dir DATA

Runs `examples/ptb_lstm.py` once for each batch size (about 40 minutes each on one core). Finished runs are kept and
skipped. Writes `benchmarks/results/ptb_lstm.json` from whatever has finished.
"""

import argparse
from pathlib import Path

import sweep

ROOT = Path(__file__).resolve().parent
BATCH_SIZES = (20, 160, 640)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data-dir", required=True, help="folder with ptb.train.txt.gz, ptb.valid.txt.gz, ptb.test.txt.gz"
    )
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=BATCH_SIZES)
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--output", type=Path, default=Path("runs/ptb_lstm"))
    arguments = parser.parse_args()
    runs = [["--batch-size", str(batch)] for batch in arguments.batch_sizes]
    sweep.run_all("ptb_lstm.py", runs, arguments.data_dir, arguments.output, arguments.jobs)
    sweep.summarize(arguments.output, ROOT / "results" / "ptb_lstm.json", metric="test_perplexity")


if __name__ == "__main__":
    main()
