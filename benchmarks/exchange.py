"""Exchange between neighbours against the strategy's all-reduce, on shaped links and without a network in between.

    python benchmarks/exchange.py [--shape "1gbit 5ms"] [--networks shaped unshaped] [--workers 8] [--quick]

Workers under MultiWorkerMirroredStrategy exchange a flat vector along the edges of several topologies, and sum it by
all-reduce, in turn; the all-reduce runs twice, which is the null pair. Shaped: each worker is a host of its own
(`links.py`, which needs root and iproute2), each direction of its link has the rate, and a packet takes the delay from
host to host, one way. Unshaped: all workers share this machine's loopback. Seconds of a turn are those of the slowest
worker; nobody starts before all are done with what was before. Prints a line of JSON for each row, and for a network
that cannot be had here the reason. Writes `benchmarks/results/exchange.json`: rows of other settings stay.
"""

import argparse
import contextlib
import json
import statistics
import sys
import tempfile
from pathlib import Path

import interleaved
import links
import numpy as np
import records

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT.parent / "examples"))

import common  # noqa: E402
import launchers  # noqa: E402

FLOATS, FEW_FLOATS = 25_000_000, 10_000
GOAL = 1.5  # ratio of the ring's matchings at 25M float32 on shaped links
SETTING = ("network", "workers", "floats", "message_dtype", "exchange", "bucket")
NETWORKS = ("shaped", "unshaped")
_BASELINE, _AGAIN = "all-reduce", "again"
_DISTINCT = 10_007  # numbers of a vector, before they repeat; a prime, so that no bucket looks like another
_CHECKED, _TOLERANCE = 1000, 1e-5  # entries at each end of a vector, and their largest error; they are about 1


def topologies(workers: int, message_dtype: str) -> dict:
    """What is compared, by name: everything with float32, with fewer bits the topology that is fastest."""
    from keras_lsb import topology

    made = {"ring_matchings": topology.ring_matchings(workers)}
    if message_dtype == "float32":
        made["one_peer_exponential"] = topology.one_peer_exponential(workers)
        made["ring"], made["exponential"] = topology.ring(workers), topology.exponential(workers)
    return made


def vector(node: int, floats: int) -> np.ndarray:
    """The message of a node."""
    return np.resize(np.random.default_rng(node).standard_normal(_DISTINCT, dtype="float32"), floats)


class Step:
    """One of the functions that are compared, on this worker: a step of its own number each time it is called.

    Args:
        function: of the number of the step, called as a replica.
        interface: name of the one that is this worker's own, None if there is none: then nothing is counted.

    Attributes:
        received: bytes that came in during each call.
    """

    def __init__(self, strategy, function, interface: str | None):
        import tensorflow as tf

        self.received, self._steps, self._interface = [], 0, interface
        self._step = tf.function(lambda number: strategy.run(function, (number,)))

    def __call__(self):
        import tensorflow as tf

        before = self._count()
        result = self._step(tf.constant(self._steps, tf.int64))
        self._steps += 1
        if self._interface:
            self.received.append(self._count() - before)
        return result

    def _count(self) -> int:
        return int(Path(f"/sys/class/net/{self._interface}/statistics/rx_bytes").read_text()) if self._interface else 0


def all_reduced(tensor):
    """The sum over all workers, as the strategy finds it; called as a replica."""
    import tensorflow as tf

    return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, tensor)


def ends(values: np.ndarray) -> np.ndarray:
    """What is checked of a vector."""
    return np.concatenate([values[:_CHECKED], values[-_CHECKED:]])


def largest_error(step: Step, exchange, messages: np.ndarray, node: int) -> float:
    """Largest error of a node's disagreement over a period, against the formula for the ends of all messages."""
    import tensorflow as tf

    sent = tf.cast(tf.cast(messages, exchange.message_dtype), "float64").numpy()
    expected = [sent[node] - matrix[node] @ sent for matrix in exchange.topology.matrices()]
    return max(float(np.abs(ends(step().numpy()) - values).max()) for values in expected)


def work(arguments) -> None:
    """Measures in this worker, and writes what it found to a file of its own."""
    common.set_threads(arguments.threads)
    import tensorflow as tf

    from keras_lsb.distribute.exchange import exchange_for

    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    node, floats = strategy.cluster_resolver.task_id, arguments.floats[0]
    options = {"message_dtype": arguments.message_dtype, "timeout": arguments.timeout, "bucket": arguments.bucket}
    made = topologies(strategy.num_replicas_in_sync, arguments.message_dtype)
    exchanges = {name: exchange_for(strategy, topology, **options) for name, topology in made.items()}
    message = tf.constant(vector(node, floats))
    functions = dict.fromkeys((_BASELINE, _AGAIN), lambda _: all_reduced(message))
    functions |= {
        name: lambda number, exchange=exchange: exchange.disagreement(message, number)
        for name, exchange in exchanges.items()
    }
    steps = {name: Step(strategy, function, arguments.interface) for name, function in functions.items()}
    messages = np.stack([ends(vector(other, floats)) for other in range(strategy.num_replicas_in_sync)])
    errors = {name: largest_error(steps[name], exchange, messages, node) for name, exchange in exchanges.items()}

    barrier = Step(strategy, lambda _: all_reduced(tf.ones([1])), None)
    turn = {"barrier": barrier}
    for name, step in steps.items():
        turn |= {name: step, f"barrier after {name}": barrier}
    interleaved.measure(turn, 1)
    seconds = interleaved.measure(turn, arguments.rounds)
    received = {name: step.received[-arguments.rounds :] for name, step in steps.items()}
    theory = {name: exchange.bytes_per_step(floats) for name, exchange in exchanges.items()}
    sent = {name: topology.models_sent for name, topology in made.items()}
    found = {"seconds": seconds, "received": received, "errors": errors, "theory": theory, "models_sent": sent}
    (arguments.run / f"found-{node}.json").write_text(json.dumps(found))


def rows(found: list[dict], settings: dict):
    """A row for each exchange, from what each worker found."""
    workers = len(found)
    seconds = {
        name: [max(turn) for turn in zip(*(one["seconds"][name] for one in found), strict=True)]
        for name in found[0]["seconds"]
    }

    def megabytes(name: str) -> float | None:
        counted = [count for one in found for count in one["received"][name]]
        return round(statistics.mean(counted) / 1e6, 4) if counted else None

    for name in found[0]["errors"]:
        yield {
            **settings,
            "exchange": f"{name}({workers})",
            "models_sent": found[0]["models_sent"][name],
            "seconds": round(statistics.median(seconds[name]), 4),
            "all_reduce_seconds": round(statistics.median(seconds[_BASELINE]), 4),
            "ratio": round(interleaved.ratio(seconds, _BASELINE, name), 3),
            "null": round(interleaved.ratio(seconds, _AGAIN, _BASELINE), 3),
            "goal": GOAL if _has_goal(name, settings) else None,
            "megabytes": megabytes(name),
            "megabytes_theory": round(found[0]["theory"][name] / 1e6, 4),
            "all_reduce_megabytes": megabytes(_BASELINE),
            "all_reduce_megabytes_theory": round(8e-6 * settings["floats"] * (workers - 1) / workers, 4),
            "error": max(one["errors"][name] for one in found),
        }


def _has_goal(name: str, settings: dict) -> bool:
    exact = settings["message_dtype"] == "float32" and settings["floats"] == FLOATS
    return name == "ring_matchings" and exact and settings["network"] != "unshaped"


def measure(arguments, floats: int, message_dtype: str, network: links.Network | None) -> list[dict]:
    """What each worker of a cluster found."""
    flags = ["--floats", str(floats), "--message-dtype", message_dtype, "--rounds", str(arguments.rounds)]
    flags += ["--threads", str(arguments.threads), "--bucket", str(arguments.bucket)]
    flags += ["--timeout", str(arguments.timeout), *(["--interface", links.INTERFACE] if network else [])]
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        flags += ["--run", folder]
        launchers.run_local(__file__, flags, arguments.workers, Path(folder), network and network.hosts)
        return [json.loads(Path(folder, f"found-{node}.json").read_text()) for node in range(arguments.workers)]


def compare(arguments, network: links.Network | None) -> None:
    """Measures all settings on a network, or on none; prints and records their rows."""
    name, delay_by = (str(arguments.shape), network.delay_by) if network else ("unshaped", None)
    settings = [(floats, "float32") for floats in arguments.floats]
    settings += [] if arguments.quick else [(arguments.floats[0], "bfloat16")]
    for floats, message_dtype in settings:
        found = measure(arguments, floats, message_dtype, network)
        shared = {"network": name, "delay_by": delay_by, "workers": arguments.workers, "bucket": arguments.bucket}
        for row in rows(found, {**shared, "floats": floats, "message_dtype": message_dtype}):
            print(json.dumps(row), flush=True)
            if row["error"] > _TOLERANCE:
                sys.exit(f"The disagreement is not that of the formula: off by {row['error']:g}")
            records.keep(arguments, "exchange", [row], SETTING, versions=common.versions())


def main() -> None:
    parser = records.parser(__doc__, "two workers, few floats and rounds")
    parser.add_argument("--shape", type=links.Shape.parse, default="1gbit 5ms", help="rate and delay of a link")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=NETWORKS)
    parser.add_argument("--workers", type=int, default=8, help="an even number")
    parser.add_argument("--floats", type=int, nargs="+", default=[FLOATS, FEW_FLOATS])
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--bucket", type=int, default=2**22, help="bytes of a message in one collective operation")
    parser.add_argument("--timeout", type=float, default=120.0, help="seconds")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each worker; 0 takes all")
    parser.add_argument("--message-dtype", default="float32", help=argparse.SUPPRESS)
    parser.add_argument("--interface", help=argparse.SUPPRESS)
    parser.add_argument("--run", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.workers, arguments.floats, arguments.rounds = 2, [FEW_FLOATS], 2
    if arguments.run:
        work(arguments)
        return
    for network in arguments.networks:
        if network == "unshaped":
            compare(arguments, None)
        elif reason := links.hindrance():
            print(json.dumps({"network": str(arguments.shape), "skipped": reason}), flush=True)
        else:
            with links.shaped(arguments.workers, arguments.shape) as made:
                compare(arguments, made)


if __name__ == "__main__":
    main()
