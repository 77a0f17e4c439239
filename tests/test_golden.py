"""Our optimizers reproduce tensorflow-addons, optax and Keras with the arguments that the dialect tables name."""

import pytest

from keras_lsb.optimizers import LAMB, LARS, AdamP
from tests.support import apply, assert_close, make_variable, to_numpy
from tests.test_reference import ARGUMENTS, INPUTS, RUNS, find_run


def make_optimizer(run):
    """Ours, with the arguments that stand for the run's library and settings."""
    settings = {ARGUMENTS.get(key, key): value for key, value in run["settings"].items()}
    settings["weight_decay"] = settings["weight_decay"] or 0.0
    if isinstance(settings["learning_rate"], list):
        settings["learning_rate"] = settings["learning_rate"][0]
    no_decay = settings.pop("exclude_from_weight_decay", None) or []
    no_adaptation = settings.pop("exclude_from_layer_adaptation", None) or []
    if run["optimizer"] == "tfa.optimizers.LAMB":
        no_adaptation = no_adaptation or no_decay
    lists = {"exclude_from_weight_decay": no_decay, "exclude_from_layer_adaptation": no_adaptation}
    if run["optimizer"] == "optax.lars":
        return LARS(denominator="joint", **lists, **settings)
    if run["optimizer"] == "optax.adamw":
        return AdamP(delta=0.0, **lists, **settings)
    return LAMB(decay="outside" if run["optimizer"] == "keras.optimizers.Lamb" else "inside", **lists, **settings)


@pytest.mark.parametrize(("library", "name"), RUNS, ids="-".join)
def test_golden(library, name):
    run = find_run(library, name)
    names = list(run["weights"])
    optimizer = make_optimizer(run)
    variables = [make_variable(INPUTS["weights"][variable], variable) for variable in names]
    optimizer.build(variables)
    rates = run["settings"]["learning_rate"]
    for step in range(len(run["weights"][names[0]])):
        if isinstance(rates, list):
            optimizer.learning_rate = rates[step]
        apply(optimizer, [INPUTS["gradients"][variable][step] for variable in names], variables)
        for variable, value in zip(names, variables, strict=True):
            assert_close(to_numpy(value), run["weights"][variable][step], 2e-6)
