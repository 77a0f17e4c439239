"""A pre-activation ResNet-20 on CIFAR-10, from float training to an integer-only LiteRT file and the proof of it.

    TF_USE_LEGACY_KERAS=1 python examples/quantize_cifar10.py --data-dir DATA
    python examples/quantize_cifar10.py                 # scikit-learn's 8 x 8 digits; Keras 3: without tfmot

DATA is a TensorFlow Datasets folder; the accuracy is that of training images kept aside, as in cifar10_resnet.py.

In a pre-activation network half of the normalizations follow an addition, so that they fold into no convolution: tfmot
refuses the model, and the converter alone makes MUL and ADD of them, with one scale for all channels. Here they become
one integer operator each. tf_keras: float training, some epochs of quantization-aware training, export. Keras 3: float
training, export with the ranges of activations on training images. Each stage is kept in --output, and an
interrupted run goes on where it was.

Prints a table of files: size, accuracy, operators left in float, time of one image on one thread against the float
file, both on LiteRT's default kernels; and the report of `verify`. Ends with an error if the report is not clean.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import cifar10_resnet
import common
import numpy as np

from keras_lsb.quantization import fixed_point_model, quantize_model, to_tflite, verify

MOMENTUM = 0.9  # of batch normalization, for runs of few steps
SETTING = {"batch_size": 512, "epochs": 30, "tuning_epochs": 2, "blocks": 3}
SETTING_OF_DIGITS = {"batch_size": 64, "epochs": 12, "tuning_epochs": 2, "blocks": 1}
REPRESENTATIVE = 256  # training images on which ranges of activations are measured
VERIFIED = 100  # held-out images that `verify` runs
TIMED = 200  # images, each on both files in turn


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", help="folder with CIFAR-10; without it, digits that scikit-learn ships")
    parser.add_argument("--batch-size", type=int, help="default: 512; for digits 64")
    parser.add_argument("--epochs", type=int, help="of float training; default: 30; for digits 12")
    parser.add_argument("--tuning-epochs", type=int, help="of quantization-aware training in tf_keras; default: 2")
    parser.add_argument("--tuning-rate", type=float, default=0.01, help="learning rate of SGD with momentum in these")
    parser.add_argument("--blocks", type=int, help="in each stage of the network; default: 3; for digits 1")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of float training")
    parser.add_argument("--target-kernel", choices=("xnnpack", "builtin", "reference"), default="xnnpack")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit-steps", type=int, help="steps per epoch at most, for a quick look")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 takes all")
    parser.add_argument("--output", type=Path, default=Path("runs/quantize"), help="weights, files, results")
    return common.with_defaults(parser.parse_args(), SETTING, SETTING_OF_DIGITS)


def build_model(keras, shape, blocks: int):
    """A residual network with normalization and ReLU before each convolution; 3 blocks to a stage make ResNet-20."""
    layers = keras.layers

    def convolve(inputs, filters, size, strides=1):
        options = {"padding": "same", "use_bias": False, "kernel_initializer": "he_normal"}
        return layers.Conv2D(filters, size, strides, **options)(inputs)

    def activate(inputs):
        return layers.ReLU()(layers.BatchNormalization(momentum=MOMENTUM)(inputs))

    inputs = keras.Input(shape)
    hidden = convolve(inputs, 16, 3)
    for filters in (16, 32, 64):
        for block in range(blocks):
            strides = 2 if block == 0 and filters > 16 else 1
            active = activate(hidden)
            shortcut = convolve(active, filters, 1, strides) if strides > 1 else hidden
            hidden = activate(convolve(active, filters, 3, strides))
            hidden = layers.Add()([convolve(hidden, filters, 3), shortcut])
    hidden = layers.GlobalAveragePooling2D()(activate(hidden))
    return keras.Model(inputs, layers.Dense(cifar10_resnet.CLASSES, kernel_initializer="he_normal")(hidden))


def name_of(arguments) -> str:
    """The folder of a run, whose name differs whenever the result may."""
    parts = ["cifar10" if arguments.data_dir else "digits", common.flavour(), f"blocks{arguments.blocks}"]
    parts += [f"b{arguments.batch_size}", f"e{arguments.epochs}and{arguments.tuning_epochs}", arguments.dtype]
    parts += [f"limit{arguments.limit_steps}"] if arguments.limit_steps else []
    return "-".join([*parts, f"rate{arguments.tuning_rate:g}", arguments.target_kernel, f"s{arguments.seed}"])


def train(keras, model, arguments, images, labels, folder: Path, *, optimizer, epochs: int, listeners=()) -> None:
    """Trains the model, from the epoch that an interrupted training had reached; `listeners` come before the logs."""
    import tensorflow as tf

    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, metrics=["accuracy"], jit_compile=False)
    steps = common.steps_in_epoch(len(images), arguments)
    data = cifar10_resnet.batches(tf, images, labels, arguments.batch_size, seed=arguments.seed, steps=steps)
    model.fit(
        data.repeat(),
        epochs=epochs,
        steps_per_epoch=steps,
        shuffle=False,  # the data set is shuffled already
        verbose=2,
        callbacks=[*listeners, *common.callbacks(keras, folder)],
    )


def train_once(keras, model, arguments, images, labels, folder: Path, **settings) -> None:
    """Trains the model, or loads the weights with which it has ended."""
    saved = folder / "trained.weights.h5"
    if saved.exists():
        model.load_weights(saved)
        return
    train(keras, model, arguments, images, labels, folder, **settings)
    partial = folder / "partial.weights.h5"
    model.save_weights(partial)
    partial.replace(saved)


def network(keras, arguments, shape):
    """The network, in the type that was asked for."""
    before = keras.mixed_precision.global_policy()
    policy = "float32" if arguments.dtype == "float32" else f"mixed_{arguments.dtype}"
    keras.mixed_precision.set_global_policy(policy)
    model = build_model(keras, shape, arguments.blocks)
    keras.mixed_precision.set_global_policy(before)
    return model


def in_float32(keras, arguments, weights, shape):
    """The network in float32 with these weights."""
    model = build_model(keras, shape, arguments.blocks)
    model.set_weights(weights)
    return model


def float_model(keras, arguments, folder: Path, images, labels):
    """The network in float32, trained in the type that was asked for."""
    shape = images.shape[1:]
    steps = common.steps_in_epoch(len(images), arguments)
    optimizer = cifar10_resnet.scaled_lars(keras, arguments, steps)
    model = network(keras, arguments, shape)
    where, epochs = folder / "float", arguments.epochs
    train_once(keras, model, arguments, images, labels, where, optimizer=optimizer, epochs=epochs)
    return in_float32(keras, arguments, model.get_weights(), shape)


def integer_model(keras, arguments, folder: Path, model, images, labels, representative):
    """The network as it is quantized: trained on with tfmot in tf_keras, else with the layers that become integers."""
    if common.flavour() == "keras":
        return fixed_point_model(model)
    result = quantize_model(model, representative)
    steps = common.steps_in_epoch(len(images), arguments) * arguments.tuning_epochs
    rate = keras.optimizers.schedules.CosineDecay(arguments.tuning_rate, steps)
    optimizer = keras.optimizers.SGD(rate, momentum=0.9)
    where, epochs = folder / "quantization-aware", arguments.tuning_epochs
    train_once(keras, result, arguments, images, labels, where, optimizer=optimizer, epochs=epochs)
    return result


def converted(model, representative=None) -> bytes:
    """What TensorFlow's converter alone makes of the model: of floats, or of integers if given images."""
    import tensorflow as tf

    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    if representative is not None:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = lambda: ([one[None]] for one in representative)
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = converter.inference_output_type = tf.int8
    return converter.convert()


class File:
    """A LiteRT file on one thread of the default kernels."""

    def __init__(self, content: bytes):
        from ai_edge_litert.interpreter import Interpreter

        self.interpreter = Interpreter(model_content=content, num_threads=1)
        self.interpreter.allocate_tensors()
        (self.input,) = self.interpreter.get_input_details()
        (self.output,) = self.interpreter.get_output_details()

    def classes(self, images) -> np.ndarray:
        return np.array([self.outputs(image).argmax() for image in self.quantized(images)])

    def quantized(self, images) -> np.ndarray:
        """Images as the file takes them."""
        scale, zero_point = self.input["quantization"]
        if not scale:
            return images
        return np.clip(np.floor(images / scale + 0.5) + zero_point, -128, 127).astype("int8")

    def outputs(self, image) -> np.ndarray:
        self.interpreter.set_tensor(self.input["index"], image[None])
        self.interpreter.invoke()
        return self.interpreter.get_tensor(self.output["index"])[0]


def times(files: dict[str, File], images) -> dict[str, float]:
    """Median time of one image by file, over that of the first; the files take turns."""
    inputs = {name: file.quantized(images) for name, file in files.items()}
    seconds = {name: [] for name in files}
    for index in range(len(images)):
        for name, file in files.items():
            started = time.perf_counter()
            file.outputs(inputs[name][index])
            seconds[name].append(time.perf_counter() - started)
    first = seconds[next(iter(files))]
    return {
        name: statistics.median(one / other for one, other in zip(values, first, strict=True))
        for name, values in seconds.items()
    }


def percent_right(classes, labels) -> float:
    return 100 * float(np.mean(classes == labels))


def accuracy_of(model, images, labels) -> float:
    """In percent, of a Keras model."""
    return percent_right(model.predict(images, batch_size=500, verbose=0).argmax(axis=1), labels)


def make_files(model, integers, representative, target_kernel: str) -> dict[str, bytes]:
    """The float network as a file, what the converter alone makes of it, and the integer one."""
    examples = representative if common.flavour() == "keras" else None
    return {
        "float": converted(model),
        "converter alone": converted(model, representative),
        "keras_lsb": to_tflite(integers, examples, target_kernel=target_kernel),
    }


def measure_files(contents: dict[str, bytes], integers, images, labels, target_kernel: str):
    """A row for each file, and what `verify` says of the last."""
    files = {name: File(content) for name, content in contents.items()}
    ratios = times(files, images[:TIMED])
    rows = []
    for name, content in contents.items():
        proof = verify(content, integers, images[:VERIFIED], target_kernel=target_kernel)
        row = {
            "file": name,
            "bytes": len(content),
            "size_ratio": len(content) / len(contents["float"]),
            "accuracy": percent_right(files[name].classes(images), labels),
            "float_operators": len(proof.float_operators),
            "time_ratio": ratios[name],
        }
        rows.append(row)
    return rows, proof


def write_files(folder: Path, contents: dict[str, bytes]) -> None:
    for name, content in contents.items():
        (folder / f"{name.replace(' ', '_')}.tflite").write_bytes(content)


def numbers_of(proof) -> dict:
    """The normalizations and outputs of a report of `verify`, for a record."""
    return {
        "layers": [layer._asdict() for layer in proof.layers],
        "outputs": [output._asdict() for output in proof.outputs],
    }


def stock_tfmot(model) -> str:
    """What tfmot says to the model without a scheme of ours."""
    if common.flavour() == "keras":
        return "not for Keras 3"
    import tensorflow_model_optimization as tfmot

    try:
        tfmot.quantization.keras.quantize_model(model)
    except Exception as error:  # of any type: it is only quoted
        return f"{type(error).__name__}: {str(error).splitlines()[0]}"
    return "quantized"


def table(rows: list[dict]) -> str:
    lines = [f"{'file':>22} {'kB':>7} {'of float':>8} {'held-out, %':>11} {'float operators':>15} {'time':>5}"]
    for row in rows:
        lines.append(
            f"{row['file']:>22} {row['bytes'] / 1e3:>7.1f} {row['size_ratio']:>8.2f} {row['accuracy']:>11.2f} "
            f"{row['float_operators']:>15} {row['time_ratio']:>5.2f}"
        )
    return "\n".join(lines)


def main() -> None:
    arguments = parse_arguments()
    common.set_threads(arguments.threads)
    import tensorflow as tf

    keras, folder = tf.keras, arguments.output / name_of(arguments)
    keras.utils.set_random_seed(arguments.seed)
    (images, labels), (held_out_images, held_out_labels) = cifar10_resnet.load(arguments.data_dir)
    held_out = cifar10_resnet.scaled(held_out_images.astype("float32"))
    representative = cifar10_resnet.scaled(images[:REPRESENTATIVE].astype("float32"))

    started = time.time()
    model = float_model(keras, arguments, folder, images, labels)
    integers = integer_model(keras, arguments, folder, model, images, labels, representative)
    models = {"float": model, "quantized": integers}
    accuracy = {name: accuracy_of(one, held_out, held_out_labels) for name, one in models.items()}
    contents = make_files(model, integers, representative, arguments.target_kernel)
    rows, proof = measure_files(contents, integers, held_out, held_out_labels, arguments.target_kernel)
    write_files(folder, contents)
    stock = stock_tfmot(model)
    found = {"rows": rows, "keras_accuracy": accuracy, "stock_tfmot": stock, **numbers_of(proof)}
    common.record(folder, arguments, arguments.seed, started, **found)
    print(proof, table(rows), f"Keras: {accuracy}", f"stock tfmot: {stock}", sep="\n\n")
    if not proof.ok:
        sys.exit("the file is not what it should be: see the report")


if __name__ == "__main__":
    main()
