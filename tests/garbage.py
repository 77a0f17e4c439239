"""Python's search for garbage, made rare: the graphs that tests trace are many thousands of objects that stay."""

import gc


def collect_rarely() -> None:
    """At the usual thresholds the search takes a tenth of their time, and more with each graph."""
    gc.freeze()
    gc.set_threshold(100_000, 20, 100)
