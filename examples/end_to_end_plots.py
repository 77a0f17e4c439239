"""The pictures of the report of end_to_end.py, as SVG whose black is the colour of the text around it."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np

STYLE = {
    "svg.fonttype": "none",  # text stays text
    "savefig.transparent": True,
    "axes.facecolor": "none",
    "legend.frameon": False,
    "legend.fontsize": "small",
    "axes.grid": True,
    "grid.alpha": 0.25,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
# By stage: its name in a legend, and a colour that is seen on white and on black.
TRAININGS = {
    "recipe": ("small batch", "#888888"),
    "lars": ("LARS and LEGW", "#2f8fd0"),
    "autowu": ("AutoWU and LAMB", "#e0701a"),
}
BLUE = TRAININGS["lars"][1]


def save(make_figure: Callable, path: Path) -> None:
    """Writes the figure that a function makes, without a screen."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    # The name of the file becomes part of the names of shapes, which share a page with those of other pictures.
    with mpl.rc_context({**STYLE, "svg.hashsalt": path.stem}):
        figure = make_figure()
        figure.savefig(path, metadata={"Date": None})
        pyplot.close(figure)


def inline(path: Path) -> str:
    """A picture as an element of a page."""
    text = path.read_text(encoding="utf-8")
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*"', "<g", text)  # alike in all pictures
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    return text.replace("#000000", "currentColor")


def _axes(rows: int = 1, columns: int = 1, size=(7, 3.4)):
    from matplotlib import pyplot

    return pyplot.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)


def trainings(records: dict):
    """Loss and learning rate of the three trainings, over epochs and over updates."""
    figure, axes = _axes(2, 2, (7.5, 5.2))
    for name, (label, color) in TRAININGS.items():
        record = records[name]
        each = record["steps"] / record["epochs"]
        losses, rates = record["history"]["loss"], record["rates"]
        ends, places = np.arange(1, len(losses) + 1), np.add(rates["steps"], 1)
        label = f"{label}, batch {record['batch_size']}"
        for column, unit in enumerate((1, each)):  # updates in a unit of the axis
            axes[0, column].plot(ends * unit, losses, ".-", markersize=4, linewidth=1.2, color=color, label=label)
            axes[1, column].plot(places / each * unit, rates["values"], linewidth=1.2, color=color)
    for place in axes[0]:
        place.set(yscale="log")
    axes[0, 0].set(ylabel="training loss")
    axes[1, 0].set(ylabel="learning rate", xlabel="epochs")
    axes[1, 1].set(xlabel="updates")
    for column in axes.T:
        column[1].set(yscale="log", ylim=(1e-5, None))
    for place in axes[:, 1]:
        place.set(xscale="log")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=len(TRAININGS))
    return figure


def noise_scale(record: dict, planned_batch_size: int):
    """The noise scale by epoch: the average so far with its interval, and that of each epoch alone."""
    figure, ((axes,),) = _axes()
    history = record["history"]
    average, low, high, signal, noise = (
        np.array(history[name], "float64")
        for name in ("noise_scale", "noise_scale_low", "noise_scale_high", "grad_sq_norm", "grad_trace")
    )
    epochs = np.arange(1, len(average) + 1)
    # Averages over all epochs so far, times their number, are sums.
    alone = np.diff(noise * epochs, prepend=0) / np.diff(signal * epochs, prepend=0)
    largest = np.nanmax([*average[np.isfinite(average)], *alone[alone > 0], planned_batch_size])
    band = np.nan_to_num(high, nan=10 * largest)
    axes.fill_between(epochs, low, band, color=BLUE, alpha=0.2, linewidth=0, label="its 90 % interval")
    axes.plot(epochs, average, color=BLUE, label="average so far")
    axes.plot(epochs, np.where(alone > 0, alone, np.nan), "o", color=BLUE, markersize=4, label="of the epoch alone")
    marked = ((record["batch_size"], ":", "batch of the recipe"), (planned_batch_size, "--", "planned batch"))
    for size, style, label in marked:
        axes.axhline(size, color="#888888", linewidth=1, linestyle=style, label=label)
    axes.set(yscale="log", xlabel="epochs", ylabel="noise scale, examples", ylim=(None, 2 * largest))
    axes.legend()
    return figure


def plan(record: dict, factor: float):
    """Steps against examples for all batch sizes, with the band of the error bar."""
    figure, ((axes,),) = _axes()
    rows = record["plan"]
    sizes, steps, examples, epochs, fewest, most = (
        np.array([row[name] for row in rows])
        for name in ("batch_size", "steps", "examples", "epochs", "epochs_low", "epochs_high")
    )
    for ends, style in ((fewest, ":"), (most, "--")):
        label = "with the ends of its interval" if style == ":" else None
        axes.plot(examples * ends / epochs, steps * ends / epochs, style, color=BLUE, linewidth=1, label=label)
    axes.plot(examples, steps, "o-", color=BLUE, markersize=4, label="by the noise scale")
    for size, place in zip(sizes, zip(examples, steps, strict=True), strict=True):
        axes.annotate(f"{size}", place, textcoords="offset points", xytext=(5, 4), fontsize="small")
    chosen = [row["factor"] for row in rows].index(factor)
    axes.plot(examples[chosen], steps[chosen], "s", color="#e0701a", markersize=8, label="the plan")
    axes.set(xscale="log", yscale="log", xlabel="examples", ylabel="updates", title="by batch size")
    axes.legend()
    return figure


def files(rows: list[dict]):
    """Sizes and accuracies of the files, side by side."""
    figure, ((sizes, accuracies),) = _axes(1, 2, (7.5, 2.2))
    names = [row["file"] for row in rows]
    for axes, column, unit, form in ((sizes, "bytes", 1e3, "{:.1f}"), (accuracies, "accuracy", 1, "{:.2f}")):
        bars = axes.barh(names, [row[column] / unit for row in rows], color=["#888888", "#e0701a", BLUE])
        axes.bar_label(bars, fmt=form, padding=3, fontsize="small")
        axes.invert_yaxis()
        axes.grid(False)
        axes.margins(x=0.2)
    sizes.set(xlabel="kB")
    accuracies.set(xlabel="held-out accuracy, %", yticks=[])
    return figure


def draw(records: dict, folder: Path) -> dict[str, str]:
    """All pictures by name, as elements of a page; they stay in the folder as files as well."""
    folder.mkdir(parents=True, exist_ok=True)
    planned = records["plan"]
    makers = {
        "trainings": lambda: trainings(records),
        "noise_scale": lambda: noise_scale(records["recipe"], planned["planned_batch_size"]),
        "plan": lambda: plan(planned, planned["factor"]),
        "files": lambda: files(records["file"]["files"]),
    }
    for name, make in makers.items():
        save(make, folder / f"{name}.svg")
    return {name: inline(folder / f"{name}.svg") for name in makers}
