"""What `make tpu-check` is made of: programs are read right, and what cannot run on a TPU is found."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.tpu_check.program import collectives, computations, memory_traffic, problems, shape_bytes
from benchmarks.tpu_check.roofline import CHIPS, Chip, roofline
from tests import registry
from tests.support import TENSORFLOW, tensorflow_only

if TENSORFLOW:
    import tensorflow as tf

    from benchmarks.tpu_check import lowering

ROOT = Path(__file__).resolve().parent.parent

# A loop, a fused kernel that reads a slice of its operand, arrays on the chip (S(1)), and two sums over the chips.
PROGRAM = """\
HloModule step, is_scheduled=true

%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %add = f32[] add(%a, %b)
}

%fused (p0: f32[4,8], p1: s32[]) -> f32[8] {
  %p0 = f32[4,8]{1,0:T(8,128)} parameter(0)
  %p1 = s32[]{:T(128)} parameter(1)
  %zero = s32[] constant(0)
  %slice = f32[1,8]{1,0} dynamic-slice(%p0, %p1, %zero), dynamic_slice_sizes={1,8}
  ROOT %flat = f32[8]{0} reshape(%slice)
}

%body (state: (s32[], f32[8], f32[4,8])) -> (s32[], f32[8], f32[4,8]) {
  %state = (s32[]{:T(128)}, f32[8]{0:T(128)}, f32[4,8]{1,0:T(8,128)}) parameter(0)
  %index = s32[]{:T(128)} get-tuple-element(%state), index=0
  %total = f32[8]{0:T(128)} get-tuple-element(%state), index=1
  %all = f32[4,8]{1,0:T(8,128)} get-tuple-element(%state), index=2
  %row = f32[8]{0:T(128)} fusion(%all, %index), kind=kLoop, calls=%fused
  %reduced = f32[8]{0:T(128)} all-reduce(%row), channel_id=1, replica_groups=[1,4]<=[4], to_apply=%sum
  ROOT %next = (s32[]{:T(128)}, f32[8]{0:T(128)}, f32[4,8]{1,0:T(8,128)}) tuple(%index, %reduced, %all)
}

%condition (state.1: (s32[], f32[8], f32[4,8])) -> pred[] {
  %state.1 = (s32[], f32[8], f32[4,8]) parameter(0)
  ROOT %true = pred[] constant(true)
}

ENTRY %main (x: f32[4,8], t: f32[8]) -> bf16[8] {
  %x = f32[4,8]{1,0:T(8,128)} parameter(0), sharding={devices=[4,1]<=[4]}
  %t = f32[8]{0:T(128)} parameter(1)
  %start = s32[]{:T(128)} constant(0)
  %initial = (s32[]{:T(128)}, f32[8]{0:T(128)}, /*index=2*/f32[4,8]{1,0:T(8,128)}) tuple(%start, %t, %x)
  %loop = (s32[]{:T(128)}, f32[8]{0:T(128)}, f32[4,8]{1,0:T(8,128)}) while(%initial), condition=%condition, body=%body
  %grads = f32[8]{0:T(128)} get-tuple-element(%loop), index=1
  %near = f32[8]{0:T(128)S(1)} copy(%grads)
  %narrow = bf16[8]{0:T(256)S(1)} convert(%near)
  %begun = ((f32[4,8]{1,0:T(8,128)}), f32[1,8]{1,0:T(8,128)S(1)}, s32[]{:S(2)}) slice-start(%x), slice={[0:1], [0:8]}
  %part = f32[1,8]{1,0:T(8,128)S(1)} slice-done(%begun)
  %copying = (f32[8]{0:T(128)}, f32[8]{0:T(128)S(1)}, u32[]{:S(2)}) copy-start(%near)
  %room = f32[4,8]{1,0:T(8,128)} custom-call(), custom_call_target="AllocateBuffer"
  %pair = (bf16[8]{0:T(256)}, bf16[8]{0:T(256)}) all-reduce(%narrow, %narrow), replica_groups={}, to_apply=%sum
  ROOT %result = bf16[8]{0:T(256)} get-tuple-element(%pair), index=0
}
"""


def test_computations_are_read():
    program, entry = computations(PROGRAM)
    assert entry == "main"
    assert set(program) == {"sum", "fused", "body", "condition", "main"}
    loop = program["main"]["loop"]
    assert (loop.operation, loop.operands, set(loop.called)) == ("while", ["initial"], {"body"})
    assert program["body"]["row"].operands == ["all", "index"]


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ("f32[]{:T(128)}", 4),
        ("pred[3]", 3),
        ("s4[3]", 2),
        ("f8e4m3fn[6]", 6),
        ("c64[2]", 16),
        ("(bf16[2,3]{1,0:T(8,128)(2,1)S(1)}, /*index=1*/u32[4])", 28),
        ("token[]", 0),
    ],
)
def test_bytes_of_a_shape(shape, size):
    assert shape_bytes(shape) == size


def test_bytes_in_memory_leave_out_what_is_on_the_chip():
    assert shape_bytes("(bf16[2,3]{1,0:T(8,128)S(1)}, u32[4]{0:T(128)})", in_memory=True) == 16


@pytest.mark.parametrize(("trips", "count", "size"), [(1, 2, 32 + 32), (5, 6, 5 * 32 + 32)])
def test_collectives_count_loops(trips, count, size):
    assert collectives(PROGRAM, trips) == {"all-reduce": (count, size)}


def test_memory_traffic_counts_slices_and_leaves_out_the_chip():
    # Each trip: the fused kernel reads a row and the index and writes a row; the sum reads and writes one. After the
    # loop two copies and a slice move a row from or to the chip, and the last sum writes two of half the width.
    trip = (32 + 4 + 32) + (32 + 32)
    assert memory_traffic(PROGRAM, 3) == 3 * trip + 3 * 32 + 2 * 16


def test_a_program_of_its_own_has_no_problems():
    assert problems(PROGRAM) == []


@pytest.mark.parametrize(
    "line",
    [
        '%c = f32[8] custom-call(%t), custom_call_target="xla_ffi_python_cpu_callback"',
        '%c = f32[8] custom-call(%t), custom_call_target="MoveToHost"',
        "%s = (f32[8], u32[], token[]) send(%t, %k), channel_id=1, is_host_transfer=true",
        "%i = ((f32[8]), token[]) infeed(%k)",
        "%o = token[] outfeed(%t, %k)",
        "%d = f32[<=8] add(%t, %t)",
        "%d = (s32[], bf16[2,<=8,3]{2,1,0}) tuple(%t, %t)",
    ],
)
def test_problems_are_found(line):
    found = problems(PROGRAM.replace("  %near =", f"  {line}\n  %near =", 1))
    assert len(found) == 1, found


def test_roofline_takes_the_slowest():
    chip = Chip(flops=100.0, memory=1.0, memory_bandwidth=10.0, link_bandwidth=4.0)
    least = roofline(chip, 4, flops=200.0, memory_bytes=50.0, reduced_bytes=2.0)
    assert least[:3] == (2.0, 5.0, 2 * 3 / 4 * 2 / 4)
    assert (least.bound, least.seconds) == ("memory", 5.0)
    assert roofline(chip, 1, 1.0, 0.0, 1e9).bound == "compute"  # a single chip has nothing to exchange


def test_chips_agree_with_the_bandwidth_stated_for_a_pod():
    """Cloud TPU documentation: an all-reduce bandwidth of 51.2 and 102.4 TB/s in pods of 256 chips."""
    assert {name: 256 * chip.link_bandwidth for name, chip in CHIPS.items()} == {"v5e": 51.2e12, "v6e": 102.4e12}


@tensorflow_only("lowering through TensorFlow")
@pytest.mark.parametrize("name", registry.OPTIMIZERS)
def test_rules_lower(name):
    assert "ENTRY" in lowering.checks()[f"rule {name}"]().hlo


@tensorflow_only("lowering through TensorFlow")
@pytest.mark.parametrize("name", [*(f"schedule {name}" for name in registry.SCHEDULES), "noise scale"])
def test_schedules_and_the_noise_scale_lower(name):
    assert "ENTRY" in lowering.checks()[name]().hlo


@tensorflow_only("lowering through TensorFlow")
@pytest.mark.parametrize("step", ["step lars Keras", "step lamb Microbatched", "step lamb Microbatched, ragged"])
def test_training_steps_lower(step):
    text = lowering.checks()[step]().hlo
    assert "convolution(" in text
    assert (" while(" in text) == ("Microbatched" in step)


@tensorflow_only("lowering through TensorFlow")
@pytest.mark.parametrize(("check", "loops"), [("attack", True), ("step lars ConAdv", False)])
def test_attack_and_step_of_two_branches_lower(check, loops):
    text = lowering.checks()[check]().hlo
    assert (" while(" in text) == loops
    assert "sign(" in text


@tensorflow_only("lowering through TensorFlow")
@pytest.mark.parametrize("check", ["rule lars", "step lars Keras", "step lars Microbatched"])
@pytest.mark.parametrize("call", ["py_function", "numpy_function"])
def test_a_rule_that_calls_python_does_not_lower(check, call, monkeypatch):
    def rule(self, weight, gradient, *slots, **_):
        halved = getattr(tf, call)(lambda array: np.asarray(array) / 2, [gradient], tf.float32)
        return tf.reshape(halved, weight.shape), *slots

    monkeypatch.setattr(registry.OPTIMIZERS["lars"][0], "rule", rule)
    with pytest.raises(ValueError, match=r"does not lower for a TPU.*PyFunc"):
        lowering.checks()[check]()


@tensorflow_only("lowering through TensorFlow")
def test_a_step_that_calls_python_does_not_lower():
    spec = tf.TensorSpec([3])
    total = tf.Variable(tf.zeros(3))

    def step(x):
        total.assign_add(tf.py_function(lambda array: array * 2, [x], tf.float32))

    with pytest.raises(ValueError, match=r"does not lower for a TPU.*PyFunc"):
        lowering.lower(lowering.without_variables(step, spec), spec)


@tensorflow_only("lowering through TensorFlow")
def test_what_is_written_is_lowered_and_not_written():
    variable, spec = tf.Variable([1.0, 2.0]), tf.TensorSpec([2])
    function = lowering.without_variables(lambda x: variable.assign_add(tf.sinh(x)), spec)
    assert "sinh" in lowering.lower(function, spec).stablehlo or "exponential" in lowering.lower(function, spec).hlo
    np.testing.assert_array_equal(variable, [1.0, 2.0])


@tensorflow_only("lowering through TensorFlow")
def test_a_shape_known_only_at_run_time_is_refused():
    with pytest.raises(ValueError, match="TPU"):
        lowering.lower(lambda x: tf.boolean_mask(x, x > 0), tf.TensorSpec([4]))


def test_the_check_fails_without_the_tpu_compiler(tmp_path):
    """The command exits with 1 where the TPU library cannot be loaded, and does not skip."""
    (tmp_path / "libtpu").mkdir()
    (tmp_path / "libtpu" / "__init__.py").write_text("raise ImportError('absent')")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    environment.pop("TF_USE_LEGACY_KERAS", None)
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.tpu_check", "--parts", "jax"],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "FAILED: jax" in done.stdout
    assert "TPU support not installed" in done.stderr
