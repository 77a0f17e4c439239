"""`python -m keras_lsb.quantization MODEL.tflite --model MODEL.h5 --data DATA.npy`: the report of `verify`, for CI.

The exit code is 0 if the file is integer and its normalizations are as exact as they are said to be, 1 if not.
"""

import argparse
import contextlib
import sys
from pathlib import Path

import numpy as np

from keras_lsb import _keras
from keras_lsb.fixedpoint.depthwise import DEPTHWISE_KERNELS
from keras_lsb.quantization import quantize_scope, verify


def main(arguments: list[str] | None = None) -> int:
    """Prints the report; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m keras_lsb.quantization", description=verify.__doc__)
    parser.add_argument("tflite", type=Path, help="the LiteRT file")
    parser.add_argument("--model", type=Path, required=True, help="the Keras model that it was made of")
    parser.add_argument("--data", type=Path, required=True, help="examples, an array in a .npy file")
    parser.add_argument("--kernel", default="xnnpack", choices=DEPTHWISE_KERNELS, help="which kernel runs the file")
    chosen = parser.parse_args(arguments)
    with quantize_scope() if _keras.LEGACY else contextlib.nullcontext():
        model = _keras.keras.models.load_model(chosen.model, compile=False)
    report = verify(chosen.tflite, model, np.load(chosen.data), target_kernel=chosen.kernel)
    print(report)
    return 0 if report.ok else 1


if __name__ == "__main__":
    sys.exit(main())
