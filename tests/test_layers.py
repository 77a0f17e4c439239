"""The rule between the rooms of the package, read from the source: who may import and name what."""

import ast
from pathlib import Path

import pytest

import keras_lsb

ROOT = Path(keras_lsb.__file__).parent
MATHS = ("rules", "scaling", "topology", "fixedpoint")
FRAMEWORKS = {"keras", "tf_keras", "tensorflow"}
REPLICAS = {
    "distribute_lib",
    "get_replica_context",
    "get_strategy",
    "merge_call",
    "maybe_merge_call",
    "all_reduce",
    "_all_reduce_sum_gradients",
    "replica_id_in_sync_group",
    "num_replicas_in_sync",
    "MirroredStrategy",
    "MultiWorkerMirroredStrategy",
    "TPUStrategy",
    "_distribution_strategy",
}
CONVERTERS = {"tensorflow_model_optimization", "ai_edge_litert"}
CONVERSION = CONVERTERS | {"tfmot", "TFLiteConverter", "LiteRTFile", "lite"}


def imports(tree):
    """Names of all imported modules, and `module.name` for what is taken out of one."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the room"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def identifiers(tree):
    """Every name, attribute and string that could reach an object by name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.FunctionDef):
            yield node.name
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def violations(source: str, path: str) -> list[str]:
    """What the module at `path`, relative to the package, does against the rule."""
    tree, room, found = ast.parse(source), path.split("/")[0], []
    for name in imports(tree):
        top = name.split(".")[0]
        if top in FRAMEWORKS and path != "_keras.py":
            found.append(f"{path} imports {name}: only _keras.py does")
        if top in CONVERTERS and room != "quantization":
            found.append(f"{path} imports {name}: only quantization/ does")
        if top == "keras_lsb" and room in MATHS:
            part = name.split(".")[1] if "." in name else ""
            arrays = [f"keras_lsb._keras.{array}" for array in ("ops", "sum_of_squares", "column_sums")]
            if part not in (*MATHS, "_checks", "_types") and name not in arrays:
                found.append(f"{path} imports {name}: maths imports maths, _checks, _types and ops")
    if room != "quantization":
        heads = {name.split(".")[0] for name in identifiers(tree)}
        found += [f"{path} names {name}: only quantization/ does" for name in sorted(CONVERSION & heads)]
    if room != "distribute":
        found += [f"{path} names {name}: only distribute/ does" for name in sorted(REPLICAS & set(identifiers(tree)))]
        chain = [ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
        found += [f"{path} names {name}: only distribute/ does" for name in chain if name.endswith("tf.distribute")]
    return found


@pytest.mark.parametrize("path", sorted(str(path.relative_to(ROOT).as_posix()) for path in ROOT.rglob("*.py")))
def test_rule_between_the_rooms(path):
    assert violations((ROOT / path).read_text(encoding="utf-8"), path) == []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("rules/bad.py", "import keras_lsb.optimizers"),
        ("rules/bad.py", "from keras_lsb import _keras"),
        ("scaling/bad.py", "from keras_lsb._keras import keras"),
        ("topology/bad.py", "from keras_lsb.optimizers.base import RuleOptimizer"),
        ("optimizers/bad.py", "import keras"),
        ("callbacks/bad.py", "def f():\n    from tensorflow import function"),
        ("optimizers/bad.py", "x = tf.distribute.get_strategy()"),
        ("optimizers/bad.py", "context.all_reduce(1)"),
        ("training/bad.py", "getattr(optimizer, '_all_reduce_sum_gradients')"),
        ("optimizers/bad.py", "import tensorflow_model_optimization as tfmot"),
        ("fixedpoint/bad.py", "from ai_edge_litert.interpreter import Interpreter"),
        ("fixedpoint/bad.py", "importlib.import_module('ai_edge_litert.interpreter')"),
        ("_keras.py", "importlib.import_module('tensorflow_model_optimization')"),
        ("callbacks/bad.py", "converter = tensorflow.lite.TFLiteConverter"),
        ("fixedpoint/bad.py", "from keras_lsb.quantization import to_tflite"),
    ],
)
def test_the_rule_can_be_broken(path, source):
    assert violations(source, path)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("rules/good.py", "import math\nfrom keras_lsb._keras import ops\nfrom keras_lsb.rules.moments import m"),
        ("scaling/good.py", "from keras_lsb._types import Tensor"),
        ("_keras.py", "import keras\nimport tf_keras"),
        ("distribute/good.py", "from keras_lsb import _keras\ncontext.all_reduce(1)"),
        ("quantization/good.py", "import tensorflow_model_optimization"),
        ("quantization/good.py", "converter = tensorflow.lite.TFLiteConverter\nfrom keras_lsb.fixedpoint import solve"),
        ("optimizers/good.py", "from keras_lsb import _keras, rules"),
    ],
)
def test_the_rule_can_be_kept(path, source):
    assert violations(source, path) == []
