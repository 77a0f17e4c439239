"""LEGW's language model: two LSTM layers of 200 units predict the next word (Penn Treebank, perplexity near 116).

The recipe (learning rate, warm-up, clip norm) is that of batch 20; any other batch size only changes --batch-size:

    python examples/ptb_lstm.py --data-dir DATA --batch-size 640
    python examples/ptb_lstm.py --data-dir DATA --batch-size 640 --method linear

DATA holds ptb.train.txt.gz, ptb.valid.txt.gz and ptb.test.txt.gz. Without it the text is a random walk over 100 words,
whose best possible perplexity is 4. An interrupted run continues at the epoch it had reached.
--hold-out leaves the test text alone and evaluates on the validation text only.
"""

import gzip
import time
from collections import Counter
from pathlib import Path

import common
import numpy as np

UNITS = 200
UNROLL = 20
CLIP_NORM = 5.0
CONSTANT_EPOCHS = 4


def load(data_dir: str | None):
    """Train, validation and test text as word numbers, and the size of the vocabulary."""
    if data_dir is None:
        random = np.random.default_rng(0)
        followers = [random.choice(100, 4, replace=False) for _ in range(100)]
        words = [0]
        for choice in random.integers(4, size=60_000):
            words.append(followers[words[-1]][choice])
        return np.split(np.asarray(words, "int32"), [50_000, 55_000]), 100
    paths = [Path(data_dir) / f"ptb.{part}.txt.gz" for part in ("train", "valid", "test")]
    texts = [gzip.decompress(path.read_bytes()).decode().replace("\n", " <eos> ").split() for path in paths]
    numbers = {word: number for number, (word, _) in enumerate(Counter(texts[0]).most_common())}
    return [np.asarray([numbers[word] for word in text], "int32") for text in texts], len(numbers)


def streams(words, batch_size: int):
    """Inputs and labels for truncated back-propagation, each (batches * batch_size, UNROLL) and not to be shuffled.

    The text is cut into `batch_size` streams of equal length; row r of each batch continues row r of the batch before.
    """
    length = len(words) // batch_size
    batches = (length - 1) // UNROLL
    rows = words[: length * batch_size].reshape(batch_size, length)
    parts = [rows[:, shift : shift + batches * UNROLL].reshape(batch_size, batches, UNROLL) for shift in (0, 1)]
    return [part.transpose(1, 0, 2).reshape(-1, UNROLL) for part in parts]


def build_model(keras, vocabulary: int, batch_size: int, length: int | None):
    """The model for a fixed batch size, whose LSTM layers keep their state from one batch to the next.

    As in the TensorFlow tutorial behind the published perplexity, weights and the softmax bias start uniform and the
    biases of the LSTM, the forget gate's too, at 0.
    """

    def uniform():
        return keras.initializers.RandomUniform(-0.1, 0.1)

    def lstm():
        return keras.layers.LSTM(
            UNITS,
            return_sequences=True,
            stateful=True,
            unroll=length is not None,
            kernel_initializer=uniform(),
            recurrent_initializer=uniform(),
            unit_forget_bias=False,
        )

    return keras.Sequential(
        [
            keras.Input((length,), batch_size=batch_size, dtype="int32"),
            keras.layers.Embedding(vocabulary, UNITS, embeddings_initializer=uniform()),
            lstm(),
            lstm(),
            keras.layers.Dense(vocabulary, kernel_initializer=uniform(), bias_initializer=uniform()),
        ]
    )


def reset_states(model) -> None:
    for layer in model.layers:
        if hasattr(layer, "reset_states"):
            layer.reset_states()


def perplexity(model, words) -> float:
    """Of the text in one stream, each word given all the words before it; `model` has batch size 1 and any length."""
    reset_states(model)
    total = 0.0
    for start in range(0, len(words) - 1, 1000):
        labels = words[None, start + 1 : start + 1001]
        inputs = words[None, start : start + labels.size]
        total += labels.size * model.evaluate(inputs, labels, batch_size=1, verbose=0)
    return float(np.exp(total / (len(words) - 1)))


def main() -> None:
    # A warm-up of 0.1 epochs, a priori: at 32 times the batch it is 3.2 epochs and still ends before the first halving.
    parser = common.parse_arguments(
        __doc__, batch_size=20, epochs=13, warmup_epochs=0.1, learning_rate=1.0, stand_in="a random walk over 100 words"
    )
    arguments = parser.parse_args()
    common.set_threads(arguments.threads)
    import tensorflow as tf

    keras = tf.keras
    (train, valid, test), vocabulary = load(arguments.data_dir)
    inputs, labels = streams(train, arguments.batch_size)
    steps = common.steps_in_epoch(len(inputs), arguments)
    halvings = range(CONSTANT_EPOCHS, arguments.epochs) or [arguments.epochs]
    # In epochs. Keras still gives the old value at a boundary: half a step earlier, an epoch starts with its own value.
    recipe = keras.optimizers.schedules.PiecewiseConstantDecay(
        boundaries=[epoch - 0.5 / steps for epoch in halvings],
        values=[arguments.learning_rate * 0.5**power for power in range(len(halvings) + 1)],
    )
    schedule = common.scaled_schedule(arguments.method, recipe, arguments, steps)
    print(schedule.summary())
    for seed in arguments.seeds:
        folder = arguments.output / common.run_name("ptb_lstm", arguments, seed)
        result = common.finished(folder)
        if result is None:
            started = time.time()
            keras.utils.set_random_seed(seed)
            model = build_model(keras, vocabulary, arguments.batch_size, UNROLL)
            model.compile(
                optimizer=keras.optimizers.SGD(schedule, global_clipnorm=CLIP_NORM),
                loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
                loss_weights=float(UNROLL),  # the recipe sums over the words of a row, Keras averages
                jit_compile=False,
            )
            reset = keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, logs, model=model: reset_states(model))
            limit = steps * arguments.batch_size
            history = model.fit(
                inputs[:limit],
                labels[:limit],
                batch_size=arguments.batch_size,
                epochs=arguments.epochs,
                shuffle=False,
                verbose=2,
                callbacks=[*common.callbacks(keras, folder), reset],
            )
            evaluator = build_model(keras, vocabulary, batch_size=1, length=None)
            evaluator.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True), jit_compile=False)
            for target, source in zip(evaluator.trainable_variables, model.trainable_variables, strict=True):
                target.assign(source)
            valid_perplexity = perplexity(evaluator, valid)
            losses = [float(value) / UNROLL for value in history.history["loss"]]
            result = common.record(
                folder,
                arguments,
                seed,
                started,
                test_perplexity=None if arguments.hold_out else perplexity(evaluator, test),
                valid_perplexity=valid_perplexity,
                losses=losses,
                diverged=not np.isfinite([*losses, valid_perplexity]).all(),
            )
        test_perplexity = "not computed" if arguments.hold_out else f"{result['test_perplexity']:.2f}"
        print(
            f"seed {seed}: validation perplexity {result['valid_perplexity']:.2f}, test perplexity {test_perplexity}",
            flush=True,
        )


if __name__ == "__main__":
    main()
