"""Compiles training steps of Keras 3 on JAX for TPUs that are not there, data-parallel over their chips."""

import time
from pathlib import Path
from typing import NamedTuple

import jax
import keras
import numpy as np
from jax._src.interpreters.mlir import make_ir_context  # JAX has no public way to compile a program of others
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxlib import xla_client
from jaxlib.mlir import ir

from benchmarks.tpu_check import program
from benchmarks.tpu_check.roofline import CHIPS, roofline
from keras_lsb.optimizers import LAMB, LARS, AdamP
from keras_lsb.schedules import LEGW
from keras_lsb.training import Microbatched

IMAGENET_TRAIN = 1_281_167
OPTIMIZERS = {
    "LARS": lambda rate: LARS(rate, weight_decay=1e-4),
    "LAMB": lambda rate: LAMB(rate, weight_decay=1e-2),
    "AdamP": lambda rate: AdamP(rate, weight_decay=1e-2),
}


class Case(NamedTuple):
    """A training step: `microbatches=0` is Keras' own, otherwise `Microbatched` with the noise scale."""

    model: str
    optimizer: str
    microbatches: int
    batch_size: int
    topology: str

    @property
    def name(self) -> str:
        """For people and for files."""
        return "-".join(map(str, self)).replace(":", "-").replace(" ", "_")


def small_cases() -> list[Case]:
    """Every optimizer with the noise scale, and Keras' own step, over 4 and 16 chips of both generations."""
    steps = [("LARS", 4), ("LAMB", 4), ("AdamP", 4), ("LAMB", 0)]
    topologies_ = [f"{generation}:{slice_}" for generation in CHIPS for slice_ in ("2x2", "4x4")]
    return [Case("small", *step, 1024, topology) for topology in topologies_ for step in steps]


def resnet50_cases() -> list[Case]:
    """LAMB and LEGW at four batch sizes, in microbatches of at most 128 images on a chip."""
    sizes = ((4096, 2), (32768, 16), (1024, 2), (8192, 4))
    return [
        Case("ResNet-50", "LAMB", microbatches, batch_size, f"{generation}:4x4")
        for batch_size, microbatches in sizes
        for generation in CHIPS
    ]


def check(case: Case, texts: Path | None = None) -> dict:
    """Compiles one case and returns a row of the table; the program is written to `texts`."""
    devices = topologies.get_topology_desc(platform="tpu", topology_name=case.topology).devices
    train_step, state, data = training_step(case)
    started = time.perf_counter()
    compiled = compile_for(devices, train_step, state, data)
    seconds = time.perf_counter() - started
    text = compiled.as_text()
    if texts is not None:
        texts.mkdir(parents=True, exist_ok=True)
        (texts / f"{case.name}.hlo").write_text(text)
    memory = compiled.memory_analysis()
    return {
        "model": case.model,
        "optimizer": case.optimizer,
        "batch_size": case.batch_size,
        "microbatches": case.microbatches or None,
        "topology": case.topology,
        "chips": len(devices),
        "compile_seconds": round(seconds, 1),
        **_predicted(case, len(devices), text, _memory_bytes(memory), _flops(case) / len(devices)),
        "problems": program.problems(text),
    }


def compile_for(devices, function, state, data):
    """`function(state, data)` compiled for `devices`: the state on each of them, the data split by examples."""
    mesh = Mesh(np.array(devices), ("batch",))

    def placed(arrays, *axes):
        sharding = NamedSharding(mesh, PartitionSpec(*axes))
        return jax.tree.map(lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding), arrays)

    return jax.jit(function, donate_argnums=0).lower(placed(state), placed(data, "batch")).compile()


def compile_stablehlo(text: str, topology: str = "v5e:2x2") -> list[str]:
    """Compiles a program of TensorFlow for one chip; returns what keeps it from running there."""
    device = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices[0]
    with make_ir_context():
        module = ir.Module.parse(text)
        compiled = device.client.compile(module, xla_client.DeviceList((device,)), xla_client.CompileOptions())
    return program.problems(compiled.hlo_modules()[0].to_string())


def callback_is_refused(topology: str = "v5e:2x2") -> bool:
    """Whether the check refuses a step that calls Python on the host, and takes the same without the call."""

    def calls(state, data):
        return jax.pure_callback(np.cos, jax.ShapeDtypeStruct(state.shape, state.dtype), state) + data.sum()

    def stays(state, data):
        return jax.numpy.cos(state) + data.sum()

    devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    arrays = jax.ShapeDtypeStruct((8,), "float32"), jax.ShapeDtypeStruct((8, 2), "float32")
    refused, taken = (program.problems(compile_for(devices, step, *arrays).as_text()) for step in (calls, stays))
    return bool(refused) and not taken


def training_step(case: Case, microbatches: int | None = None):
    """`(train_step, state, data)`: Keras' pure function, and the arrays it takes."""
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    keras.utils.set_random_seed(0)
    model, examples = (resnet50(), IMAGENET_TRAIN) if case.model == "ResNet-50" else (small_model(), 50_000)
    microbatches = case.microbatches if microbatches is None else microbatches
    trained = Microbatched(model, microbatches) if microbatches else model
    schedule = LEGW(
        0.001,
        base_batch_size=256,
        batch_size=case.batch_size,
        steps_per_epoch=examples / case.batch_size,
        warmup_epochs=0.1,
    )
    trained.compile(
        OPTIMIZERS[case.optimizer](schedule),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    data = tuple(
        jax.ShapeDtypeStruct((case.batch_size, *shape), dtype)
        for shape, dtype in ((model.input_shape[1:], "float32"), ((), "int32"))
    )
    trained._symbolic_build(data_batch=tuple(keras.KerasTensor(array.shape, array.dtype) for array in data))
    groups = trained.trainable_variables, trained.non_trainable_variables, trained.optimizer.variables
    state = tuple([variable.value for variable in group] for group in (*groups, trained.metrics_variables))
    return lambda *arguments: trained.train_step(*arguments), state, data


def small_model():
    """A network with everything that a training step may hold: convolution, batch normalization, dropout."""
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((32, 32, 3)),
            layers.Conv2D(32, 3, use_bias=False),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.Dropout(0.1),
            layers.GlobalAveragePooling2D(),
            layers.Dense(10, dtype="float32"),
        ]
    )


def resnet50():
    """ResNet-50 for ImageNet, without weights and with logits as outputs."""
    return keras.applications.ResNet50(weights=None, classifier_activation=None)


def _predicted(case: Case, chips: int, text: str, memory_bytes: int, flops: float) -> dict:
    generation = CHIPS[case.topology.partition(":")[0]]
    trips = max(1, case.microbatches)
    exchanged = program.collectives(text, trips)
    if set(exchanged) - {"all-reduce"}:
        raise ValueError(f"A data-parallel step only sums over the chips. Received: {exchanged}")
    count, reduced = exchanged["all-reduce"]
    traffic = program.memory_traffic(text, trips)
    least = roofline(generation, chips, flops, traffic, reduced)
    return {
        "memory_gib": round(memory_bytes / 2**30, 3),
        "of_memory": round(memory_bytes / generation.memory, 3),
        "gflop": round(flops / 1e9, 1),
        "memory_traffic_mb": round(traffic / 1e6, 1),
        "all_reduces": count,
        "reduced_mb": round(reduced / 1e6, 3),
        "compute_ms": round(1e3 * least.compute, 3),
        "memory_ms": round(1e3 * least.memory, 3),
        "collective_ms": round(1e3 * least.collective, 3),
        "bound": least.bound,
        "step_ms": round(1e3 * least.seconds, 3),
        "examples_per_second": round(case.batch_size / least.seconds),
    }


def _memory_bytes(memory) -> int:
    """What a step holds on one chip: arguments, results that do not take the arguments' place, temporaries, code."""
    results = memory.output_size_in_bytes - memory.alias_size_in_bytes
    code = memory.generated_code_size_in_bytes
    return memory.argument_size_in_bytes + results + memory.temp_size_in_bytes + code


def _flops(case: Case) -> float:
    """Of the whole step before it is split over chips, with the batch in one piece: XLA counts loops only once."""
    train_step, state, data = training_step(case, microbatches=min(1, case.microbatches))
    return jax.jit(train_step).lower(state, data).cost_analysis()["flops"]
