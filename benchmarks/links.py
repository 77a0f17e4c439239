"""Hosts on this machine with links of a set rate and delay: network namespaces around a switch, for root on Linux.

Each host's way to the switch and back is shaped by tc to the rate. The delay is that of the way to the host, so that a
packet from one host to another waits once, and a round trip takes two delays. It is netem's, or that of `delay_line.py`
where the kernel has no netem.
"""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

INTERFACE = "eth0"  # of each host
PORT = 2222  # of what listens on a host; each has ports of its own
_PREFIX, _NETWORK = "exchange-", "10.77.0"
_QUEUE = "32mb"  # bytes that wait for their turn on a link: more than senders have on the way, so that none is dropped
_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}


class Host(NamedTuple):
    """Where a worker listens, and the words before a command that run it there."""

    address: str
    prefix: list[str]


class Network(NamedTuple):
    """Hosts, and what delays packets between them: "netem" or "delay_line"."""

    hosts: list[Host]
    delay_by: str


class Shape(NamedTuple):
    """Rate of a link in each direction, as tc writes it, and seconds from host to host, one way."""

    rate: str
    delay: float

    def __str__(self) -> str:
        return f"{self.rate} {1e3 * self.delay:g}ms"

    @classmethod
    def parse(cls, text: str) -> "Shape":
        """From a rate and a delay, such as "1gbit 5ms"."""
        match = re.fullmatch(r"(\d+(?:\.\d+)?[kmg]bit) (\d+(?:\.\d+)?)(us|ms|s)", text)
        if match is None:
            raise ValueError(f'`shape` must be a rate and a delay, such as "1gbit 5ms". Received: shape={text!r}')
        return cls(match[1], float(match[2]) * _UNITS[match[3]])


def hindrance() -> str | None:
    """Why links cannot be shaped here; None where they can."""
    for tool in ("ip", "tc"):
        if shutil.which(tool) is None:
            return f"iproute2 is missing: there is no `{tool}` in PATH"
    if os.geteuid() != 0:
        return "not root: only root makes network namespaces"
    try:
        with _namespaces(["probe"]) as (probe,):
            if _delay_tool(probe) is None:
                return "the kernel has no netem, and there is no `iptables-legacy` for `delay_line.py` in its place"
    except subprocess.CalledProcessError as error:
        return f"network namespaces do not work here: {error.stderr.strip()}"
    return None


@contextlib.contextmanager
def shaped(workers: int, shape: Shape):
    """A `Network` of hosts around a switch, which are gone afterwards together with all that runs on them."""
    for name in orphans():
        _remove(name)
    with contextlib.ExitStack() as stack:
        switch, *names = stack.enter_context(_namespaces(["switch", *map(str, range(workers))]))
        _run("ip", "-n", switch, "link", "add", "bridge", "type", "bridge")
        _run("ip", "-n", switch, "link", "set", "bridge", "up")
        tool = _delay_tool(switch)
        for index, name in enumerate(names):
            _connect(switch, index, name)
            _shape(switch, f"port{index}", shape, delayed=tool == "netem")
            _shape(name, INTERFACE, shape, delayed=False)
            if tool == "delay_line":
                stack.enter_context(_delay_line(name, shape.delay))
        hosts = [Host(f"{_address(index)}:{PORT}", _inside(name)) for index, name in enumerate(names)]
        yield Network(hosts, tool)


def orphans() -> list[str]:
    """Namespaces that benchmarks which were killed have left."""
    matches = re.finditer(rf"^{_PREFIX}(\d+)-\w+", _run("ip", "netns", "list"), re.MULTILINE)
    return [match[0] for match in matches if not Path("/proc", match[1]).exists()]


def _delay_tool(namespace: str) -> str | None:
    """What delays packets on this machine: "netem", "delay_line" or None. The namespace is one to try it in."""
    try:
        _run("tc", "-n", namespace, "qdisc", "add", "dev", "lo", "root", "netem", "delay", "1ms")
        _run("tc", "-n", namespace, "qdisc", "del", "dev", "lo", "root")
        return "netem"
    except subprocess.CalledProcessError:
        return "delay_line" if shutil.which("iptables-legacy") else None


def _connect(switch: str, index: int, name: str) -> None:
    """A cable from a host to a port of the switch."""
    port = f"port{index}"
    _run("ip", "link", "add", INTERFACE, "netns", name, "type", "veth", "peer", "name", port, "netns", switch)
    _run("ip", "-n", switch, "link", "set", port, "master", "bridge", "up")
    _run("ip", "-n", name, "address", "add", f"{_address(index)}/24", "dev", INTERFACE)
    _run("ip", "-n", name, "link", "set", INTERFACE, "up")


def _shape(namespace: str, device: str, shape: Shape, delayed: bool) -> None:
    """Limits what leaves through a device to the rate, and delays it before if so."""
    add, place = ("tc", "-n", namespace, "qdisc", "add", "dev", device), ("root",)
    if delayed:
        microseconds = f"{round(1e6 * shape.delay)}us"
        _run(*add, *place, "handle", "1:", "netem", "delay", microseconds, "limit", "1000000")
        place = ("parent", "1:1")
    _run(*add, *place, "tbf", "rate", shape.rate, "burst", "256kb", "limit", _QUEUE)


@contextlib.contextmanager
def _delay_line(name: str, delay: float):
    """Delays what arrives at a host. It goes before all others on the processor, else it would delay by more."""
    rule = ["iptables-legacy", "-t", "mangle", "-A", "PREROUTING", "-i", INTERFACE, "-j", "NFQUEUE", "--queue-num", "0"]
    script = Path(__file__).resolve().with_name("delay_line.py")
    command = [*_inside(name), "nice", "-n", "-19", sys.executable, "-I", str(script), str(delay)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        try:
            if process.stdout.readline() != "ready\n":
                raise RuntimeError(f"{script.name} did not start: see its error above")
            _run(*_inside(name), *rule)
            yield
        finally:
            process.kill()


@contextlib.contextmanager
def _namespaces(names: list[str]):
    """Network namespaces of this process, each with a loopback."""
    full = [f"{_PREFIX}{os.getpid()}-{name}" for name in names]
    try:
        for name in full:
            _run("ip", "netns", "add", name)
            _run("ip", "-n", name, "link", "set", "lo", "up")
        yield full
    finally:
        for name in full:
            _remove(name)


def _remove(name: str) -> None:
    with contextlib.suppress(subprocess.CalledProcessError):  # where it was never made
        for process in _run("ip", "netns", "pids", name).split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(process), signal.SIGKILL)
        _run("ip", "netns", "delete", name)


def _address(index: int) -> str:
    return f"{_NETWORK}.{index + 1}"


def _inside(name: str) -> list[str]:
    return ["ip", "netns", "exec", name]


def _run(*words: str) -> str:
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout
