"""The catalogue of mutants is in step with the source: each text occurs once, each named test exists."""

from pathlib import Path

import pytest

import keras_lsb
from tests.mutants.catalogue import MUTANTS


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_mutant_applies(mutant):
    source = (Path(keras_lsb.__file__).parent / mutant.file).read_text(encoding="utf-8")
    assert source.count(mutant.text) == 1
    assert mutant.replacement != mutant.text
    for node in mutant.tests:
        file, function = node.split("::")
        assert f"def {function.split('[')[0]}(" in (Path(__file__).parent / file).read_text(encoding="utf-8")


def test_names_are_unique():
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)
