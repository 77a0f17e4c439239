"""Runs an example over many settings and gathers what each run recorded."""

import json
import os
import statistics
import subprocess
import sys
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from tqdm import tqdm

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def run_all(script: str, runs: list[list[str]], data_dir: str, output: Path, jobs: int) -> None:
    """Runs `examples/script` with each list of flags, `jobs` at a time, one thread each; logs go to `output`."""
    output.mkdir(parents=True, exist_ok=True)

    def run_one(flags: list[str]) -> tuple[list[str], int]:
        command = [sys.executable, script, "--threads", "1", "--data-dir", os.path.abspath(data_dir)]
        log = output.resolve() / f"{'_'.join(flags).replace('--', '')}.log"
        with log.open("w") as stream:
            command += ["--output", str(output.resolve()), *flags]
            return flags, subprocess.run(command, cwd=EXAMPLES, stdout=stream, stderr=subprocess.STDOUT).returncode

    failed = []
    with ThreadPoolExecutor(jobs) as pool, tqdm(total=len(runs), unit="run") as progress:
        for future in as_completed([pool.submit(run_one, flags) for flags in runs]):
            flags, code = future.result()
            progress.set_postfix_str(" ".join(flags))
            progress.update()
            failed += [flags] if code else []
    if failed:
        raise RuntimeError(f"{len(failed)} runs failed, their logs are in {output}: {failed}")


def records(output: Path) -> list[dict]:
    """What every finished run under `output` has recorded."""
    return [json.loads(path.read_text()) for path in sorted(output.glob("*/result.json"))]


def summarize(output: Path, target: Path, metric: str, scale: float = 1.0) -> list[dict]:
    """Mean and range of `metric` over seeds for each rule, batch size and recipe, written to `target` as JSON rows."""
    groups = defaultdict(list)
    finished = records(output)
    for record in finished:
        groups[record["method"], record["batch_size"], record["learning_rate"]].append(record)
    rows = []
    for (method, batch_size, learning_rate), group in sorted(
        groups.items(), key=lambda item: (item[0][0] != "legw", item[0])
    ):
        values = [scale * record[metric] for record in group]
        rows.append(
            {
                "method": method,
                "batch_size": batch_size,
                "seeds": len(group),
                "mean": round(statistics.fmean(values), 3),
                "lowest": round(min(values), 3),
                "highest": round(max(values), 3),
                "diverged": sum(record["diverged"] for record in group),
                "learning_rate": learning_rate,
                "warmup_epochs": group[0]["warmup_epochs"],
                "epochs": group[0]["epochs"],
            }
        )
    target.parent.mkdir(exist_ok=True)
    target.write_text(
        json.dumps({"versions": finished[0]["versions"], "metric": metric, "rows": rows}, indent=1) + "\n"
    )
    return rows
