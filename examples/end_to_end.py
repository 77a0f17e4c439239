"""From a recipe at a small batch to a chip without floating point: every stage on one network, and one report.

    TF_USE_LEGACY_KERAS=1 python examples/end_to_end.py --data-dir DATA
    python examples/end_to_end.py                       # scikit-learn's 8 x 8 digits; Keras 3: without tfmot

DATA is a TensorFlow Datasets folder with CIFAR-10; the accuracy is that of training images kept aside. The stages:

1. the pre-activation ResNet-20 of quantize_cifar10.py with LARS at a small batch, which also measures the noise scale;
2. a plan for a batch --factor times as large: how many epochs it needs, by that noise scale;
3. the planned batch on several replicas, virtual devices of this machine, with the recipe scaled by LEGW alone;
4. the same with AutoWU, which is given no learning rate;
5. the network of stage 3 with integers in place of floats: trained on in tf_keras, measured on data in Keras 3;
6. an integer LiteRT file, and the proof of it.

Nothing is tuned at the planned batch. Each stage is kept in --output: a finished one is not repeated, an interrupted
training continues at the epoch it had reached. Writes results.json and report.html, and ends with an error if a claim
of the report does not hold.
"""

import argparse
import json
import shlex
import sys
from importlib import metadata
from pathlib import Path

import common
import end_to_end_report
import end_to_end_stages as stages

SETTING = {
    "base_batch_size": 32,
    "epochs": 12,
    "replicas": 4,
    "tuning_epochs": 2,
    "blocks": 3,
    "tolerance": 1.0,
}
SETTING_OF_DIGITS = {
    "base_batch_size": 8,
    "epochs": 6,
    "replicas": 2,  # each is traced by itself, which takes longer than its training
    "tuning_epochs": 1,
    "blocks": 1,
    "tolerance": 8.0,  # either accuracy, on 360 held-out digits, differs by some points from run to run
}


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", help="folder with CIFAR-10; without it, digits that scikit-learn ships")
    parser.add_argument("--base-batch-size", type=int, help="of the recipe; default: 32; for digits 8")
    parser.add_argument("--epochs", type=int, help="of the recipe; default: 12; for digits 6")
    # Two cost least, and are nearest to the unsplit batch for batch normalization.
    parser.add_argument("--microbatches", type=int, default=2, help="of a batch of the recipe, to measure noise with")
    parser.add_argument("--factor", type=int, default=16, help="of the planned batch over that of the recipe")
    parser.add_argument(
        "--replicas", type=int, help="virtual devices that share the planned batch; default: 4; digits 2"
    )
    parser.add_argument("--tuning-epochs", type=int, help="with quantization, in tf_keras; default: 2; for digits 1")
    parser.add_argument("--tuning-rate", type=float, default=0.01, help="learning rate of SGD with momentum in these")
    parser.add_argument("--blocks", type=int, help="in each stage of the network; default: 3; for digits 1")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of float training")
    parser.add_argument("--target-kernel", choices=("xnnpack", "builtin", "reference"), default="xnnpack")
    parser.add_argument("--tolerance", type=float, help="points that the file may lose; default: 1; for digits 8")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit-steps", type=int, help="steps per epoch at most, for a quick look")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 takes all")
    parser.add_argument("--output", type=Path, default=Path("runs/end_to_end"), help="all stages, results, report")
    return common.with_defaults(parser.parse_args(), SETTING, SETTING_OF_DIGITS)


def announce(run, number: int, name: str, titles: dict[str, str]) -> None:
    """Says which stage comes, how long it is, and what of it is there."""
    settings, place = run.settings(name), run.place(name)
    length = f"batch {settings.batch_size}"
    if name in ("recipe", "lars", "autowu"):
        length += f", {settings.epochs} epochs of {run.steps(settings)} steps"
    done = ""
    if common.finished(place):
        done = ": was done before"
    elif (place / "log.csv").exists():
        done = f": {len(common.history(place).get('loss', []))} epochs are done"
    print(f"[{number}/{len(titles)}] {titles[name]} ({length}){done}", flush=True)


def claims_of(records: dict, arguments) -> list[dict]:
    """What the report claims, each with what was found and whether it holds."""
    recipe, large, file = records["recipe"], records["lars"], records["file"]
    ratio, loss = large["batch_size"] / recipe["batch_size"], recipe["accuracy"] - file["accuracy"]
    floats = len(file["float_operators"])
    return [
        {
            "claim": f"The batch is at least {arguments.factor} times that of the recipe.",
            "found": f"{large['batch_size']} against {recipe['batch_size']} examples, {ratio:g} times",
            "holds": ratio >= arguments.factor,
        },
        {
            "claim": f"The file is at most {arguments.tolerance:g} points below the recipe at its small batch.",
            "found": f"{file['accuracy']:.2f} % against {recipe['accuracy']:.2f} %, a loss of {loss:.2f} points",
            "holds": loss <= arguments.tolerance,
        },
        {
            "claim": "The file has no operator that computes in floating point.",
            "found": f"{floats or 'no'} such operator{'s' * (floats > 1)}",
            "holds": floats == 0,
        },
        {
            "claim": "Every normalization of the network is in the file, and what is called exact is exact.",
            "found": f"`verify` says {'OK' if file['ok'] else 'FAILED'}",
            "holds": file["ok"],
        },
    ]


def results_of(run) -> dict:
    """The numbers of all stages, in the form of benchmarks/results."""
    records, flags = run.records, run.arguments
    planned, file = records["plan"], records["file"]
    (chosen,) = (row for row in planned["plan"] if row["factor"] == flags.factor)
    size = {"batch_size": planned["planned_batch_size"], "epochs": planned["planned_epochs"]}
    tuning_epochs = None if records["quantized"]["steps"] is None else flags.tuning_epochs
    own = {  # what stands for something else in the record of a stage
        "recipe": {"replicas": 1},
        "plan": {**size, "steps": round(chosen["steps"])},
        "quantized": {"replicas": 1, "epochs": tuning_epochs},
        "file": {"replicas": 1, "epochs": None},
    }
    merged = {name: {**record, **own.get(name, {})} for name, record in records.items()}
    columns = ("batch_size", "replicas", "epochs", "steps", "accuracy", "seconds")
    rows = [{"stage": name, **{key: record.get(key) for key in columns}} for name, record in merged.items()]
    names = ("factor", "base_batch_size", "microbatches", "tolerance", "dtype", "blocks", "seed", "target_kernel")
    return {
        "versions": versions_of(records),
        "task": "CIFAR-10" if flags.data_dir else "digits",
        **{name: getattr(flags, name) for name in names},
        "rows": rows,
        "claims": claims_of(records, flags),
        "noise_scale": records["recipe"]["noise_scale"],
        **{name: planned[name] for name in ("plan", "useful_batch_size", "is_useful", "verdict")},
        "autowu": {name: records["autowu"][name] for name in ("check", "switch_step", "peak", "reason")},
        **{name: file[name] for name in ("files", "layers", "outputs", "report")},
    }


def versions_of(records: dict) -> dict:
    """Versions that the stages were made with, and of what makes and runs the files."""
    found = {}
    for record in records.values():
        for name, version in record["versions"].items():
            found.setdefault(name, []).append(version)
    packages = ["ai-edge-litert", *(["tensorflow-model-optimization"] if common.flavour() == "tf_keras" else [])]
    one = {name: values[0] if len(set(values)) == 1 else ", ".join(map(str, values)) for name, values in found.items()}
    return {**one, **{name: metadata.version(name) for name in packages}}


def table(rows: list[dict]) -> str:
    lines = [
        f"{'stage':>10} {'batch':>6} {'replicas':>8} {'epochs':>6} {'steps':>7} {'held-out, %':>11} {'seconds':>8}"
    ]
    for row in rows:
        cells = ["-" if row[key] is None else row[key] for key in ("batch_size", "replicas", "epochs", "steps")]
        accuracy = "-" if row["accuracy"] is None else f"{row['accuracy']:.2f}"
        batch, replicas, epochs, steps = cells
        numbers = f"{batch:>6} {replicas:>8} {epochs:>6} {steps:>7} {accuracy:>11} {row['seconds']:>8.1f}"
        lines.append(f"{row['stage']:>10} {numbers}")
    return "\n".join(lines)


def main() -> None:
    arguments = parse_arguments()
    common.set_threads(arguments.threads)
    common.set_virtual_devices(arguments.replicas)
    run, titles = stages.Run(arguments), {name: stage.title for name, stage in stages.STAGES.items()}
    for number, name in enumerate(titles, 1):
        announce(run, number, name, titles)
        run.do(name)
    results = results_of(run)
    (arguments.output / "results.json").write_text(json.dumps(results, indent=1, allow_nan=False) + "\n")
    report = arguments.output / "report.html"
    command = shlex.join(["python", *sys.argv])
    end_to_end_report.write(report, results, run, titles, command)
    print(table(results["rows"]), results["verdict"], sep="\n\n")
    print(f"\nreport: {report}")
    failed = [f"{claim['claim']} Found: {claim['found']}." for claim in results["claims"] if not claim["holds"]]
    if failed:
        sys.exit("\n".join(["claims that do not hold:", *failed]))


if __name__ == "__main__":
    main()
