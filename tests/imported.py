"""What the processes of `tests.workers` have in common when they begin: imports, and settings that these read."""

import os
import sys

from tests.garbage import collect_rarely
from tests.workers import ENVIRONMENT

os.environ.update(ENVIRONMENT)

if os.environ.get("KERAS_BACKEND", "tensorflow") == "tensorflow":  # threads of JAX do not survive a fork
    sys.modules.setdefault("jax", None)  # TensorFlow imports it where it is installed: a sixth of its start
    import tensorflow  # noqa: F401

    import tests.registry  # noqa: F401

collect_rarely()
