"""The benchmark of exchanges: bytes and values are right, and what cannot be measured here is said."""

import json
import os
import subprocess
import sys

import pytest

from benchmarks import links
from tests.support import tensorflow_only
from tests.workers import ENVIRONMENT, ROOT


def quick(network: str, **environment) -> list[dict]:
    """The lines that the quick mode prints for a network."""
    command = [sys.executable, "benchmarks/exchange.py", "--quick", "--networks", network]
    settings = {"cwd": ROOT, "env": os.environ | ENVIRONMENT | environment, "capture_output": True, "text": True}
    found = subprocess.run(command, timeout=120, check=False, **settings)
    assert found.returncode == 0, found.stderr
    return [json.loads(line) for line in found.stdout.splitlines()]


@pytest.mark.workers
@tensorflow_only("the exchange between workers")
@pytest.mark.parametrize("network", ["unshaped", "shaped"])
def test_quick_mode_compares_all_topologies(network):
    if network == "shaped" and (reason := links.hindrance()):
        pytest.skip(reason)
    rows = quick(network)

    assert [row["exchange"] for row in rows] == [
        "ring_matchings(2)",
        "one_peer_exponential(2)",
        "ring(2)",
        "exponential(2)",
    ]
    for row in rows:
        assert row["models_sent"] == 1
        assert row["megabytes_theory"] == row["all_reduce_megabytes_theory"] == 0.04  # 10,000 float32
        assert row["error"] < 1e-6
        assert min(row["seconds"], row["all_reduce_seconds"]) > 0
        for counted in ("megabytes", "all_reduce_megabytes"):
            if network == "unshaped":
                assert row[counted] is None
            else:
                assert 0.04 < row[counted] < 0.05  # headers and acknowledgements are on the wire as well
    if network == "shaped":
        assert all(row["seconds"] > 0.01 for row in rows)  # a request and its answer
        assert links.orphans() == []


def test_without_iproute2_the_reason_is_named(tmp_path):
    (line,) = quick("shaped", PATH=str(tmp_path))

    assert line == {"network": "1gbit 5ms", "skipped": "iproute2 is missing: there is no `ip` in PATH"}


def test_without_root_the_reason_is_named(monkeypatch):
    monkeypatch.setattr(links.shutil, "which", lambda tool: tool)
    monkeypatch.setattr(links.os, "geteuid", lambda: 1000)

    assert links.hindrance().startswith("not root")


@pytest.mark.parametrize("text", ["1gbit", "1gbit 5", "fast 5ms", "1gbit  5ms"])
def test_a_shape_is_a_rate_and_a_delay(text):
    with pytest.raises(ValueError, match=r"such as \"1gbit 5ms\""):
        links.Shape.parse(text)

    assert str(links.Shape.parse("100mbit 2.5ms")) == "100mbit 2.5ms"
