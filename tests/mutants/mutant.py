"""What a mutant is."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """Replaces `text`, which occurs exactly once in `file`, and expects the test nodes `tests` to fail.

    `file` is relative to the package, `tests` to the folder of the tests.
    """

    name: str
    file: str
    text: str
    replacement: str
    tests: tuple[str, ...]
