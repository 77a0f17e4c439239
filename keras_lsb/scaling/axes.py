"""Where plots go."""

from keras_lsb._types import Axes


def axes_or_new(ax: Axes | None) -> Axes:
    """The matplotlib axes `ax`, or those of a new figure where it is None."""
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt

    return plt.figure(layout="constrained").add_subplot()
