"""No unbacked number: what a page says of our measurements comes from benchmarks/results, through a marker."""

import ast
import math
import re
import warnings

import pytest

from keras_lsb import topology
from tests import pages

# Results look like this: percentages and decimal fractions.
NUMBER = re.compile(r"(?<![\w.])\d+\.\d+|(?<![\w.,])\d[\d,]*\s?%")
# What is taken out before: code, markers, targets of links, papers and versions.
OTHER = [
    re.compile(r"^ {4,}(?! *[-*\d]).*$", re.M),
    re.compile(r"`[^`]*`"),
    re.compile(r"\{\{.*?\}\}", re.S),
    re.compile(r"\]\([^)]*\)"),
    re.compile(r"(arXiv|HDF|Apache-|version is)\s?\d[\d.]*"),
    re.compile(
        r"\b(python|tensorflow|keras|tfmot|ai-edge-litert|tensorflow-addons|authors,|or)\b[-\w]*,? \(?\d+(\.\d+)+", re.I
    ),
    re.compile(r"`? \((0\.23\.0)\)"),
    re.compile(r"\d+\.\d+\.\d+|\b2\.20\b|Python 3\.\d+"),
]
# A setting says what was done, not what came out.
SETTING = re.compile(
    r"(rates?|momentum|decay|smoothing|coefficient|clip norm|confidence|dropout|warm-up of|betas|lr|wd)"
    r"(\*\*)?( of| at| to| is)?:?\s\(?\d+(\.\d+)?(( and|,| to) \d+\.\d+)*"
)
# Sections and columns that hold the numbers of others, beside their source.
SECTIONS = {
    "published-rows": "accuracies of the code that the section names",
    "published-numbers": "the authors' tables",
    "dialects-of-lars": "arguments of other implementations",
    "dialects-of-lamb": "arguments of other implementations",
    "sources": "equations of the papers",
}
COLUMNS = {
    "the paper claims": "each cell names its source",
    "the papers claim": "each cell names its source",
    "default": "arguments of the class",
    "the authors' released ImageNet code [2]": "arguments of that code",
}
# Sentences with a number that is neither measured here nor a setting, and why it may stand.
ALLOWED = {
    "CONTRIBUTING.md": {"at most 1 % of a\nstep": "the rule for tolerances"},
    "README.md": {
        "more than 90 % of the held-out digits": "test_numbers_of_the_readme",
    },
    "autowu.md": {
        "sqrt(1e-3) = 0.03": "arithmetic",
        "The rate had gone on to 0.0891": "printed by the example above it",
        "between 0.1 and 10": "a bound of the rule, whose noise is absolute",
        "100 steps of 0.01": "the rule",
        "scatter by more than 0.03": "the root of the rule's first variance",
        "Losses of a constant 2.3": "the data of the example below it",
        "Above 0.1, take": "advice; the example above it asserts both sides",
        "95 % band": "what the plot draws",
        "T / 11.5": "the logarithm of the default rates",
        "`length_scale` below 0.01": "the bound that the class checks",
    },
    "conadv.md": {
        "use (0.5, 0.5)": "an argument",
    },
    "cookbook_cnn.md": {
        "`momentum` of 0.99": "Keras' default",
        "0.9 follows within ten": "the argument of the example",
    },
    "cookbook_lstm.md": {"3 % at the peak": "the learning rate of the example"},
    "cookbook_transformer.md": {"2 % at the peak": "the learning rate of the example"},
    "decentlam.md": {
        "1 / (1 - 0.8)^2": "arithmetic",
        "1 ends it, 0.05 leaves 95 %": "arithmetic",
        "count 1.75 times": "arithmetic: 1/4 from the hub itself, 1/2 from each of three",
        "and not at 0.8": "test_stability.py",
        "disagreement by 1.24": "test_stability.py",
        "takes 0.5 % of the disagreement away": "test_spectral_gap_of_a_thin_graph",
        "2 (n - 1) / n = 1.75": "arithmetic",
    },
    "launching.md": {"fewer than 93 % of": "test_launching.py runs the example with this claim"},
    "legw.md": {"peaks at 0.892": "printed by the example below it"},
    "migrating.md": {"the defaults 1e-3, 0.9, 0.999": "arguments of both"},
    "noise_scale.md": {
        "0.99 holds about the last hundred": "arithmetic",
        "90 % unless": "an argument",
        "equation 2.6": "of the paper",
        "the saving 1 %": "arithmetic",
    },
    "optimizers.md": {
        "76.51\ninstead of 75.34 % at batch 2K, and 76.14 instead of 74.28 %": "reported by the project that it names",
    },
    "results.md": {
        "test perplexity 115.91": "published by the tutorial that it names",
        "0.1 epochs": "a setting",
        "rates 1.5 apart": "a setting",
        "0.4; plain SGD": "the dropout of the paper's network",
        "AdamP (0.01)": "a setting",
        "for the loss 0.05": "the goal of the sweep",
        "90 % interval": "an argument",
        "intervals of 90 %": "an argument",
        "0.3 in the first twelfth": "a setting",
        "0.1 to 1 on two graphs": "a setting",
        "25.6 million numbers": "the size of ResNet-50",
    },
    "tutorial_autowu.md": {"more than 90 % of": "an assert of the page"},
    "tutorial_critical_batch.md": {
        "a loss of 0.2": "an argument of the example",
        "3.5 times the speed and cost 4.6 times": "an assert of the page",
        "1.6 times the speed at\n1.2 times the cost": "an assert of the page",
    },
    "tutorial_decentlam.md": {"fewer than 85 %": "test_decentlam_examples.py runs the example with this claim"},
}
README = (pages.ROOT / "README.md").read_text(encoding="utf-8")


def unbacked(name: str, markdown: str) -> list[str]:
    """Lines of a page with a number that nothing backs."""
    for sentence in ALLOWED.get(name, {}):
        assert sentence in markdown, f"{name} no longer says {sentence!r}"
        markdown = markdown.replace(sentence, "")
    kept, heading, header, columns = [], "", None, []
    for line in markdown.splitlines():
        if line.startswith("#"):
            heading = pages.slug(line.lstrip("# "))
        if not line.startswith("|"):
            header = None
        elif header is None:
            header = [cell.strip() for cell in line.split("|")]
            columns = [name for name in header if name in COLUMNS]
        if columns and header and line.startswith("|"):
            cells = dict(zip(header, line.split("|"), strict=False))
            line = "|".join(cell for name, cell in cells.items() if name not in columns)
        kept.append("" if heading in SECTIONS else line)
    plain = "\n".join(kept)
    for pattern in (*OTHER, SETTING):
        plain = pattern.sub(" ", plain)
    return [line.strip() for line in plain.splitlines() if NUMBER.search(line)]


@pytest.mark.parametrize("page", pages.PAGES, ids=lambda page: page.name)
def test_every_number_is_backed(page):
    assert unbacked(page.name, pages.text(page)) == []


@pytest.mark.parametrize(
    ("sentence", "found"),
    [
        ("It reaches 97.3 % there.", True),
        ("Twice as fast, at 1.9 times the memory.", True),
        ("90 % of them", True),
        ("| LEGW | 98.87 |", True),
        ("It reaches {{ value:mnist_lstm:rows.0.mean:.2f }} % there.", False),
        ("A learning rate of 0.1 and momentum 0.9.", False),
        ("`LARS(0.5)` on TensorFlow 2.16, arXiv 1901.08256.", False),
        ("## Published numbers\n\n| AutoWU | 75.54 |", False),
    ],
)
def test_results_are_told_from_settings(sentence, found):
    assert bool(unbacked("none.md", sentence)) is found


def test_numbers_of_the_readme():
    """The sentence under the first example, computed from it; that the accuracy is right the example prints."""
    code, printed = re.search(r"```python\n(.*?)```\n\n```text\n(.*?)```", README, re.S).groups()
    lines = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
    count = lines[len([line for line in code.splitlines() if line.strip()]) - 1].capitalize()
    arguments = {
        keyword.arg: ast.literal_eval(keyword.value)
        for call in ast.walk(ast.parse(code))
        if isinstance(call, ast.Call)
        for keyword in call.keywords
        if isinstance(keyword.value, ast.Constant)
    }
    held_out = int(re.search(r"fit\(images\[(\d+):\]", code)[1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from sklearn.datasets import load_digits
    examples = len(load_digits().target) - held_out
    updates = [
        arguments["epochs"] * math.ceil(examples / arguments[name]) for name in ("batch_size", "base_batch_size")
    ]
    assert arguments["steps_per_epoch"] == math.ceil(examples / arguments["batch_size"])
    assert f"{count} lines, {updates[0]:,} updates instead of {updates[1]:,}, more than 90 %" in README
    assert code.rstrip().endswith("> 0.9)")
    assert printed == "True\n"
    assert f"at batch {arguments['base_batch_size']} (learning rate 0.02" in README
    assert "CosineDecay(0.02" in code
    assert f"{arguments['warmup_epochs']} epochs of warm-up" in README
    assert f"cosine decay over {arguments['epochs']} epochs" in README
    assert f"decay_steps={arguments['epochs']}" in code


def test_spectral_gap_of_a_thin_graph():
    assert round(100 * topology.ring_matchings(64).spectral_gap, 1) == 0.5
