"""LEGW's first application: an LSTM reads a digit row by row (28 steps of 28 pixels on MNIST).

The recipe (learning rate, warm-up) is tuned at batch 128; any other batch size only changes --batch-size:

    python examples/mnist_lstm.py --data-dir DATA --batch-size 8192
    python examples/mnist_lstm.py --data-dir DATA --batch-size 8192 --method linear

Without --data-dir it trains on scikit-learn's 8 x 8 digits. An interrupted run continues at the epoch it had reached.
"""

import time

import common
import numpy as np


def build_model(keras, rows: int, pixels: int):
    return keras.Sequential(
        [
            keras.Input((rows, pixels)),
            keras.layers.Dense(128),
            keras.layers.LSTM(128, unroll=True),
            keras.layers.Dense(10),
        ]
    )


def main() -> None:
    parser = common.parse_arguments(__doc__, batch_size=128, epochs=25, warmup_epochs=0.1, learning_rate=0.1)
    arguments = parser.parse_args()
    common.set_threads(arguments.threads)
    import tensorflow as tf

    keras = tf.keras
    (images, labels), (test_images, test_labels) = common.load_digits(arguments.data_dir, arguments.hold_out)
    steps = common.steps_in_epoch(len(images), arguments)
    schedule = common.scaled_schedule(arguments.method, arguments.learning_rate, arguments, steps)
    print(schedule.summary())
    for seed in arguments.seeds:
        folder = arguments.output / common.run_name("mnist_lstm", arguments, seed)
        result = common.finished(folder)
        if result is None:
            started = time.time()
            keras.utils.set_random_seed(seed)
            model = build_model(keras, *images.shape[1:])
            model.compile(
                optimizer=keras.optimizers.SGD(schedule, momentum=0.9),
                loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
                metrics=[common.accuracy(keras)],
                jit_compile=False,
            )
            limit = steps * arguments.batch_size
            history = model.fit(
                images[:limit],
                labels[:limit],
                batch_size=arguments.batch_size,
                epochs=arguments.epochs,
                verbose=2,
                callbacks=common.callbacks(keras, folder),
            )
            loss, accuracy = model.evaluate(test_images, test_labels, batch_size=2000, verbose=0)
            result = common.record(
                folder,
                arguments,
                seed,
                started,
                accuracy=float(accuracy),
                loss=float(loss),
                losses=[float(value) for value in history.history["loss"]],
                diverged=not np.isfinite(loss),
            )
        print(f"seed {seed}: test accuracy {100 * result['accuracy']:.2f} %", flush=True)


if __name__ == "__main__":
    main()
