"""Models without models inside."""

from keras_lsb import _keras
from keras_lsb._types import Layer, Model, Structure, Tensor


def flatten_model(model: Model) -> Model:
    """The same functional model of tf_keras with the layers of nested models as its own; weights are copied.

    A model without nested ones is returned as it is. A layer whose name is taken gets that of its model in front.

    Args:
        model: functional or Sequential, of tf_keras.

    Raises:
        ValueError: a nested model that is neither Sequential nor functional, by name.
    """
    if not any(isinstance(layer, _keras.Model) for layer in model.layers):
        return model
    _require_graph(model)
    inputs = [_keras.keras.Input(tensor=None, **_input_spec(tensor)) for tensor in model.inputs]
    copies: dict = {}
    outputs = _run(model, inputs, copies, prefix="")
    flat = _keras.Model(inputs, outputs[0] if len(outputs) == 1 else outputs, name=model.name)
    for layer, copy in copies.values():
        copy.set_weights(layer.get_weights())
        copy.trainable = layer.trainable
    return flat


def _input_spec(tensor: Tensor) -> dict:
    name = tensor.node.layer.name if hasattr(tensor, "node") else None
    return {"shape": tensor.shape[1:], "batch_size": tensor.shape[0], "dtype": tensor.dtype, "name": name}


def _run(model: Model, inputs: list, copies: dict, prefix: str) -> list:
    """Outputs of a model's graph for other inputs, through copies of its layers."""
    _require_graph(model)
    values = {id(tensor): value for tensor, value in zip(model.inputs, inputs, strict=True)}
    for node in _nodes(model):
        if node.is_input:
            continue
        layer = node.layer
        arguments, options = _mapped((node.call_args, node.call_kwargs), values)
        if isinstance(layer, _keras.Model):
            found = _run(layer, _leaves(arguments[0]), copies, f"{prefix}{layer.name}_")
        else:
            found = _leaves(_copy(layer, copies, prefix)(*arguments, **options))
        values.update({id(tensor): value for tensor, value in zip(_leaves(node.outputs), found, strict=True)})
    return [values[id(tensor)] for tensor in model.outputs]


def _nodes(model: Model) -> list:
    """The nodes of a functional model in the order of computation."""
    return [node for depth in sorted(model._nodes_by_depth, reverse=True) for node in model._nodes_by_depth[depth]]


def _copy(layer: Layer, copies: dict, prefix: str) -> Layer:
    """A layer of the same config, one for all uses of the original."""
    if id(layer) not in copies:
        taken = {copy.name for _, copy in copies.values()}
        config = layer.get_config()
        if config["name"] in taken:
            config["name"] = prefix + config["name"]
        copies[id(layer)] = layer, type(layer).from_config(config)
    return copies[id(layer)][1]


def _mapped(structure: Structure, values: dict) -> Structure:
    return _keras.tensorflow.nest.map_structure(lambda leaf: values.get(id(leaf), leaf), structure)


def _leaves(structure: Structure) -> list:
    return _keras.tensorflow.nest.flatten(structure)


def _require_graph(model: Model) -> None:
    if not getattr(model, "_is_graph_network", False):
        raise ValueError(
            f"The model {model.name!r} has no graph of layers: only Sequential models that are built and functional "
            f"models can be quantized. Received: {type(model).__name__} {model.name!r}"
        )
