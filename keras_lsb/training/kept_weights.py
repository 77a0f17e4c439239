"""The weights that a model had before its last updates."""

from keras_lsb import _keras
from keras_lsb._types import Model

tf = _keras.tensorflow


class KeptWeights:
    """The values that variables had in each of the last steps; they are weights of a model, and saved as such.

    Args:
        model: whose weights they become.
        variables: what is kept, of any floating type.
        steps: how many former values of each; 0 keeps nothing.
    """

    def __init__(self, model: Model, variables: list, steps: int):
        self.variables = variables
        self.steps = [  # the oldest first
            [
                _keras.add_local_weight(
                    model, f"kept_{age}_{number}", tuple(variable.shape), _keras.dtype_name(variable)
                )
                for number, variable in enumerate(variables)
            ]
            for age in range(steps)
        ]

    def fill(self) -> None:
        """Outside of replicas: all former values are the present ones."""
        for kept in self.steps:
            for variable, copy in zip(self.variables, kept, strict=True):
                copy.assign(_keras.read(variable))

    def keep(self) -> None:
        """Puts the present values behind those that are kept, and forgets the oldest."""
        newer = [*self.steps[1:], self.variables]
        values = [[tf.convert_to_tensor(one) for one in newer[age]] for age in range(len(self.steps))]
        for kept, new in zip(self.steps, values, strict=True):
            for variable, value in zip(kept, new, strict=True):
                variable.assign(value)

    def oldest(self) -> list:
        """Pairs of each variable and the oldest value that is kept; none if nothing is."""
        return [
            (variable, tf.convert_to_tensor(kept))
            for step in self.steps[:1]
            for variable, kept in zip(self.variables, step, strict=True)
        ]

    def require(self, variables: list) -> None:
        """Raises a ValueError that names those of the variables that should be kept and are not."""
        known = {id(variable) for variable in self.variables}
        added = [variable.name for variable in variables if id(variable) not in known]
        if added and self.steps:
            raise ValueError(
                "Weights must be trainable when `ConAdv` wraps them, which keeps them as they were in former steps. "
                f"Received: weights that were not trainable then, {added}"
            )
