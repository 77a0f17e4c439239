"""Prints, as JSON, the weights after 20 updates by every optimizer of the registry: run once per flavour of Keras.

`python -m tests.flavour_updates --without-tensorflow` refuses every import of TensorFlow, to prove that none is needed.
"""

import json
import sys


class _Refuse:
    """An import hook that makes TensorFlow and tf_keras absent."""

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("tensorflow", "tf_keras"):
            raise ImportError(f"{name} is refused: Keras 3 on JAX must do without it")


def main():
    if "--without-tensorflow" in sys.argv:
        sys.meta_path.insert(0, _Refuse())
    import keras_lsb
    from tests import registry
    from tests.support import BACKEND, LEGACY, apply, make_variable, to_numpy

    weights, gradients = registry.inputs()
    result = {}
    for name in registry.OPTIMIZERS:
        schedule, _ = registry.decaying_rate(registry.OPTIMIZERS[name][1]["learning_rate"])
        optimizer = registry.make(name, learning_rate=schedule)
        variables = [make_variable(weight, path) for path, weight in weights.items()]
        for step in range(20):
            apply(optimizer, [gradients[path][step % 6] for path in weights], variables)
        result[name] = [to_numpy(variable).ravel().tolist() for variable in variables]
    loaded = "tensorflow" in sys.modules
    print(json.dumps({"flavour": [BACKEND, LEGACY], "tensorflow": loaded, "package": keras_lsb.__name__, **result}))


if __name__ == "__main__":
    main()
