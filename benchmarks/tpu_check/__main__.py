"""Proves as much of Cloud TPU as can be proved without one; exits with 1 when anything fails.

    python -m benchmarks.tpu_check [--resnet50] [--parts keras3 tf_keras jax]

`keras3` and `tf_keras` lower update rules, schedules, training steps and the noise scale through TensorFlow. `jax`
compiles training steps of Keras 3 with the real TPU compiler, for 4 and 16 chips of v5e and v6e, and what TensorFlow
lowered for one chip. `--resnet50` adds ResNet-50, minutes for each program: a stopped run goes on with what is not in
`runs/tpu_check/` yet. With it, `benchmarks/results/tpu_check.json` is written.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

RUNS = Path("runs") / "tpu_check"
RESULTS = Path(__file__).resolve().parent.parent / "results" / "tpu_check.json"
PARTS = {
    "keras3": {"KERAS_BACKEND": "tensorflow", "TF_USE_LEGACY_KERAS": "0"},
    "tf_keras": {"KERAS_BACKEND": "tensorflow", "TF_USE_LEGACY_KERAS": "1"},
    # The TPU library looks for chips on this machine unless it is told what it has.
    "jax": {
        "KERAS_BACKEND": "jax",
        "JAX_PLATFORMS": "cpu",
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": "v5litepod-16",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_WORKER_ID": "0",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    },
}
CAPTION = "Compiled, not run: times are least times by the roofline."


def lower_all(part: str) -> bool:
    """Lowers all that there is in one flavour of Keras; the programs are kept for the compiler."""
    import tensorflow as tf

    from benchmarks.tpu_check import lowering

    folder, failed, checks = RUNS / f"{part}_{lowering.platform()}", 0, lowering.checks()
    folder.mkdir(parents=True, exist_ok=True)
    for name, check in checks.items():
        started = time.perf_counter()
        try:
            (folder / f"{name}.mlir").write_text(check().stablehlo)
            report = "lowers"
        except Exception as error:  # whatever it is, it would not run on a TPU
            report, failed = f"FAILS: {error}", failed + 1
        print(f"{part:8} {name:32} {report} ({time.perf_counter() - started:.1f} s)", flush=True)
    result = {
        "flavour": part,
        "tensorflow": tf.__version__,
        "platform": lowering.platform(),
        "programs": len(checks),
        "failed": failed,
    }
    (RUNS / f"lowered_{part}_{result['platform']}.json").write_text(json.dumps(result))
    return not failed


def compile_all(resnet50: bool) -> bool:
    """Compiles the small training steps, TensorFlow's programs, and ResNet-50's steps on request."""
    from benchmarks.tpu_check import ahead_of_time

    RUNS.mkdir(parents=True, exist_ok=True)
    refused = ahead_of_time.callback_is_refused()
    print(f"jax      a host callback {'is refused' if refused else 'is NOT refused'}", flush=True)
    failures = [] if refused else ["host callback"]
    rows = {False: [], True: []}
    small = [(case, False) for case in ahead_of_time.small_cases()]
    for case, keep in small + [(case, True) for case in ahead_of_time.resnet50_cases() if resnet50]:
        kept = RUNS / f"{case.name}.json"
        try:
            row = json.loads(kept.read_text()) if keep and kept.exists() else ahead_of_time.check(case, RUNS)
        except Exception as error:
            failures.append(case.name)
            print(f"jax      {case.name} FAILS: {error}", flush=True)
            continue
        if keep:
            kept.write_text(json.dumps(row))
        failures += [case.name] if row["problems"] or row["of_memory"] > 1 else []
        rows[keep].append(row)
        print(format_row(row), flush=True)
    programs = sorted(
        path for part in ("keras3", "tf_keras") for path in (RUNS / part).glob("step * Microbatched.mlir")
    )
    for path in programs:
        found = compile_or_report(ahead_of_time, path)
        failures += [str(path)] if found else []
        print(f"jax      {path.parent.name} {path.stem}: {found or 'compiles'}", flush=True)
    if resnet50 and not failures:
        record(rows, len(programs))
    return not failures


def compile_or_report(ahead_of_time, path: Path) -> list[str]:
    """What is wrong with one of TensorFlow's programs."""
    try:
        return ahead_of_time.compile_stablehlo(path.read_text())
    except Exception as error:
        return [str(error)]


def format_row(row: dict) -> str:
    """One line of the table."""
    microbatches = f"{row['microbatches']} microbatches" if row["microbatches"] else "Keras' own step"
    problems = f" PROBLEMS: {row['problems']}" if row["problems"] else ""
    return (
        f"{row['model']:10} {row['optimizer']:6} {row['topology']} batch {row['batch_size']:6} {microbatches:16} "
        f"compiled in {row['compile_seconds']:6.1f} s, {row['memory_gib']:6.3f} GiB, {row['gflop']:8.1f} GFLOP, "
        f"{row['all_reduces']} all-reduces of {row['reduced_mb']:.3f} MB, "
        f"step >= {row['step_ms']:.3f} ms ({row['bound']}){problems}"
    )


def record(rows: dict, from_tensorflow: int) -> None:
    """Writes the results; `rows` are of the small model (False) and of ResNet-50 (True)."""
    # What was lowered in an environment with tensorflow-tpu stays until it is lowered again.
    lowered = json.loads(RESULTS.read_text())["lowered"] if RESULTS.exists() else {}
    lowered |= {
        path.stem.removeprefix("lowered_"): json.loads(path.read_text()) for path in RUNS.glob("lowered_*.json")
    }
    result = {
        "caption": CAPTION,
        "versions": {
            **{name: metadata.version(name) for name in ("keras_lsb", "keras", "jax", "libtpu", "tensorflow")},
            "python": platform.python_version(),
            "cores": os.cpu_count(),
        },
        "lowered": lowered,
        "compiled_from_tensorflow": from_tensorflow,
        "small": {
            "programs": len(rows[False]),
            "compile_seconds": round(sum(row["compile_seconds"] for row in rows[False])),
            "most_of_memory": max(row["of_memory"] for row in rows[False]),
        },
        "rows": sorted(rows[True], key=lambda row: (row["batch_size"], row["topology"])),
    }
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--resnet50", action="store_true", help="also ResNet-50: up to an hour")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.here:
        part = arguments.parts[0]
        return not (compile_all(arguments.resnet50) if part == "jax" else lower_all(part))
    failed = []
    for part in arguments.parts:  # a process each: a process has one backend and one flavour
        command = [sys.executable, "-m", "benchmarks.tpu_check", "--here", "--parts", part]
        command += ["--resnet50"] if arguments.resnet50 else []
        if subprocess.run(command, env={**os.environ, **PARTS[part]}, check=False).returncode:
            failed.append(part)
    print(f"FAILED: {', '.join(failed)}" if failed else "All parts passed.")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
