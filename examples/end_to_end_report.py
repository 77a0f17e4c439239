"""The report of end_to_end.py: one HTML page that needs nothing but itself."""

import math
from pathlib import Path

import end_to_end_plots


def count(value) -> str:
    """A whole number with thousands apart, a dash where there is none."""
    return "\N{EN DASH}" if value is None else f"{value:,.0f}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def number(value, digits: int = 3) -> str:
    """Significant digits, without an exponent where four places show it."""
    if value is None:
        return "\N{EN DASH}"
    if value and not 1e-3 <= abs(value) < 1e5:
        return f"{value:.{digits}g}"
    places = max(0, digits - 1 - math.floor(math.log10(abs(value)))) if value else 0
    text = f"{value:.{places}f}"
    return count(value) if places == 0 and abs(value) >= 1e4 else text


def percent(value) -> str:
    return "\N{EN DASH}" if value is None else f"{value:.2f}\N{NARROW NO-BREAK SPACE}%"


def duration(seconds: float) -> str:
    """Seconds, minutes or hours, as one says them."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def write(path: Path, results: dict, run, titles: dict[str, str], command: str) -> None:
    """Writes the page of a finished run."""
    import jinja2
    from markupsafe import Markup

    templates = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(
        loader=templates, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {"count": count, "number": number, "percent": percent, "duration": duration}
    plots = end_to_end_plots.draw(run.records, path.parent / "plots")
    plots["autowu"] = end_to_end_plots.inline(run.place("autowu") / "autowu.svg")
    page = environment.get_template("end_to_end.html.j2").render(
        results=results,
        stages={row["stage"]: row for row in results["rows"]},
        records=run.records,
        titles=titles,
        numbers={name: place for place, name in enumerate(titles, 1)},
        plots={name: Markup(text) for name, text in plots.items()},
        command=command,
    )
    partial = path.with_suffix(".partial")
    partial.write_text(page, encoding="utf-8")
    partial.replace(path)
