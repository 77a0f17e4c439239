"""The least time that a step can take on a TPU: pure arithmetic, no accelerator."""

from typing import NamedTuple


class Chip(NamedTuple):
    """What one chip can do at best: bf16 FLOP/s, bytes of memory, bytes/s of memory and, one way, of all its links."""

    flops: float
    memory: float
    memory_bandwidth: float
    link_bandwidth: float


# Cloud TPU documentation, cloud.google.com/tpu/docs/v5e and /v6e, "Key chip specifications": peak compute per chip
# (bf16), HBM capacity and bandwidth, inter-chip interconnect bandwidth per chip, which it gives in both directions (400
# and 800 GB/s). One way that is 1600 and 3200 Gbit/s; times the 256 chips of a pod, the all-reduce bandwidth it states.
CHIPS = {
    "v5e": Chip(flops=197e12, memory=16 * 2**30, memory_bandwidth=819e9, link_bandwidth=200e9),
    "v6e": Chip(flops=918e12, memory=32 * 2**30, memory_bandwidth=1638e9, link_bandwidth=400e9),
}


class Roofline(NamedTuple):
    """Seconds that a step needs for each of three resources, and the name of the one that takes longest."""

    compute: float
    memory: float
    collective: float
    bound: str

    @property
    def seconds(self) -> float:
        """Least time of the step, if all three overlap perfectly."""
        return max(self[:3])


def roofline(chip: Chip, chips: int, flops: float, memory_bytes: float, reduced_bytes: float) -> Roofline:
    """The roofline of one step of data-parallel training.

        compute = flops / chip.flops                        memory = memory_bytes / chip.memory_bandwidth
        collective = 2 * (chips - 1) / chips * reduced_bytes / chip.link_bandwidth

    The last is a ring all-reduce: each chip sends every byte but its own share twice, once to sum and once to spread.

    Args:
        chip: one of `CHIPS`.
        chips: number of chips, 1 or more.
        flops: of one chip.
        memory_bytes: read and written in the memory of one chip.
        reduced_bytes: size of all that is summed over the chips.
    """
    times = {
        "compute": flops / chip.flops,
        "memory": memory_bytes / chip.memory_bandwidth,
        "collective": 2 * (chips - 1) / chips * reduced_bytes / chip.link_bandwidth,
    }
    return Roofline(**times, bound=max(times, key=times.get))
