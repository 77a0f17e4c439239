"""The generated C, compiled with every warning an error and undefined behaviour trapped, agrees with NumPy."""

import json
import shutil
import subprocess

import numpy as np
import pytest

from keras_lsb import fixedpoint

COMPILER = shutil.which("gcc") or shutil.which("cc") or shutil.which("clang")
INT8 = (-128, 127)
FLAGS = ["-std=c99", "-O1", "-Wall", "-Wextra", "-Werror", "-fsanitize=undefined", "-fno-sanitize-recover=all"]
MAIN = """#include <stdio.h>
#include "layers.h"
int main(void)
{{
    for (int32_t channel = 0; channel < {channels}; channel++)
        for (int32_t x = {low}; x <= {high}; x += {step})
            printf("%d\\n", (int){name}_apply(channel, x));
    return 0;
}}
"""


def layer(channels, seed, **options):
    random = np.random.default_rng(seed)
    scale, offset = random.normal(size=channels), random.normal(size=channels) * 40
    return fixedpoint.solve(scale, offset, INT8, INT8, **options)


@pytest.mark.skipif(COMPILER is None, reason="a C compiler is needed to compile the header")
@pytest.mark.parametrize(
    ("name", "solved", "step"),
    [
        ("shared", layer(256, 1), 1),
        ("own", layer(64, 2, per_channel=True), 1),
        ("wide", fixedpoint.solve([1e-5, -3e-4, 0.0], [3.0, -9.0, 7.0], (-(2**20), 2**20), (-100, 90)), 997),
    ],
)
def test_compiled_header_gives_every_output(tmp_path, name, solved, step):
    fixedpoint.export_header({name: solved}, tmp_path / "layers.h")
    (low, high), channels = solved.input_range, len(solved.multiplier)
    main = MAIN.format(channels=channels, low=low, high=high, step=step, name=name)
    (tmp_path / "main.c").write_text(main)
    command = [COMPILER, *FLAGS, "main.c", "-o", "main"]
    compiled = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert compiled.returncode == 0, compiled.stderr
    printed = subprocess.run([tmp_path / "main"], capture_output=True, text=True, check=True).stdout
    x = np.arange(low, high + 1, step)[:, None] + np.zeros(channels, int)
    np.testing.assert_array_equal(np.array(printed.split(), int).reshape(channels, -1), solved(x).T)


def test_json_holds_the_integers(tmp_path):
    solved = layer(5, 3)
    header = fixedpoint.export_header({"first": solved, "second": layer(2, 4)}, tmp_path / "layers.h")
    found = json.loads(header.with_suffix(".json").read_text())
    assert [*found] == ["first", "second"]
    assert found["first"]["multiplier"] == solved.multiplier.tolist()
    assert found["first"]["offset"] == solved.offset.tolist()
    assert found["first"]["shift"] == [solved.shift] * 5
    assert found["first"]["input_range"] == [-128, 127]
    assert (found["first"]["low"], found["first"]["high"]) == ([-128] * 5, [127] * 5)


def test_what_cannot_be_written(tmp_path):
    with pytest.raises(ValueError, match=r"identifiers of C.*'layer 1'"):
        fixedpoint.export_header({"layer 1": layer(1, 0)}, tmp_path / "layers.h")
    wide = layer(1, 0)._replace(multiplier=np.array([2**60]))
    with pytest.raises(ValueError, match="'wide' do not fit 64 bits"):
        fixedpoint.export_header({"wide": wide}, tmp_path / "layers.h")
    assert not [*tmp_path.iterdir()]
