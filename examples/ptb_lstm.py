"""LEGW's language model: two LSTM layers of 200 units predict the next word (Penn Treebank, perplexity near 116).

The recipe (learning rate, warm-up, clip norm) is that of batch 20; any other batch size only changes --batch-size:

    python examples/ptb_lstm.py --data-dir DATA --batch-size 640
    python examples/ptb_lstm.py --data-dir DATA --batch-size 640 --method linear

DATA holds ptb.train.txt.gz, ptb.valid.txt.gz and ptb.test.txt.gz. Without it the text is a random walk over 100 words,
whose best possible perplexity is 4. An interrupted run continues at the epoch it had reached.
"""

import gzip
import time
from collections import Counter
from pathlib import Path

import common
import numpy as np

UNITS = 200
UNROLL = 20
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
    texts = [gzip.open(Path(data_dir) / f"ptb.{part}.txt.gz", "rt") for part in ("train", "valid", "test")]
    texts = [text.read().replace("\n", " <eos> ").split() for text in texts]
    numbers = {word: number for number, (word, _) in enumerate(Counter(texts[0]).most_common())}
    return [np.asarray([numbers[word] for word in text], "int32") for text in texts], len(numbers)


def streams(words, batch_size: int):
    """Inputs and labels for truncated back-propagation: (batches * batch_size, UNROLL), not to be shuffled.

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
        if getattr(layer, "stateful", False):
            (layer.reset_state if hasattr(layer, "reset_state") else layer.reset_states)()


def cross_entropy(keras):
    """The loss of the recipe: summed over the words of a row, averaged over the rows of the batch."""

    def summed_cross_entropy(labels, logits):
        losses = keras.losses.sparse_categorical_crossentropy(labels, logits, from_logits=True)
        return losses @ np.ones((UNROLL, 1), "float32")

    return summed_cross_entropy


def main() -> None:
    raise SystemExit


if __name__ == "__main__":
    main()
