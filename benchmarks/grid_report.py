"""Reports of a grid's results: a Markdown table, and a plot of accuracy over training FLOPs."""

import itertools
import statistics
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from common import markdown, spread
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FixedLocator, NullLocator, ScalarFormatter

SPLITS = {"accuracy": "test", "validation_accuracy": "validation"}
_MARKERS = "os^vD<>Pp*Xh8d"  # for methods that are not tfspline's
_LABELS_APART = 0.055  # share of a panel's height
_HALO = [withStroke(linewidth=2.5, foreground="white")]


def table(lines: Iterable[Mapping], methods: Sequence[str] = ()) -> str:
    """Format the means over the seeds, with the standard deviation of the accuracy, as Markdown.

    For each dataset and network, makes a table of the methods without a ratio and one of the others, in the order of
    `methods`. FLOPs and times are those of the dense training with the same seed divided by the method's. Early-bird
    epochs are ranges. The best mean over all seeds of each column is bold, not counting dense training.
    """
    sections = [
        "Means over the seeds ± the standard deviation; FLOPs and time of the dense training divided by the method's; "
        "the best value of each column is bold. `spline` is the paper's method, `spline_...` are tfspline's own."
    ]
    for (dataset, network), of_all in _grouped(lines, "dataset", "network").items():
        seeds = sorted({line["seed"] for line in of_all})
        ratios = sorted({line["ratio"] for line in of_all if line["ratio"] is not None})
        dense = {line["seed"]: line["seconds"] for line in of_all if line["method"] == "dense"}
        common = set.intersection(*(set(line["options"].items()) for line in of_all))
        options = " ".join(f"--{name}={text}" for name, text in of_all[0]["options"].items() if (name, text) in common)
        sections.append(f"### {dataset}, {network}")
        sections.append(
            f"Seeds {', '.join(map(str, seeds))}; accuracy on {_split(of_all)} images; all with `{options}`"
        )
        for columns in ([None], ratios):
            found = _by_method([line for line in of_all if line["ratio"] in columns], methods)
            if found:
                sections.append(markdown(zip(*_columns(found, columns, dense, len(seeds)), strict=True)))
    return "\n\n".join(sections) + "\n"


def _columns(found, ratios, dense, seeds):
    def times(lines):
        return [dense[line["seed"]] / line["seconds"] for line in lines if line["seed"] in dense]

    kinds = (
        ("accuracy (%)", spread, lambda lines: [100 * _accuracy(line) for line in lines]),
        ("training FLOPs", _factor, lambda lines: [line["training_flops_reduction"] for line in lines]),
        ("time", _factor, times),
    )
    yield ["method", *(f"`{method}`" for method in found)]
    for (kind, text, values_of), ratio in itertools.product(kinds, ratios):
        values = {
            method: values_of([line for line in lines if line["ratio"] == ratio]) for method, lines in found.items()
        }
        yield [kind if ratio is None else f"{kind}, {100 * ratio:g} % removed", *_cells(values, text, seeds)]
    yield ["early bird, epoch", *map(_early_birds, found.values())]


def _cells(values, text, seeds):
    """Format the cells of a column, given each method's values per seed."""
    rivals = {method: found for method, found in values.items() if method != "dense" and len(found) == seeds}
    means = {method: round(statistics.mean(found), 2) for method, found in rivals.items()}
    best = max(means.values(), default=None)
    for method, found in values.items():
        cell = text(found) if found else "–"
        if found and len(found) < seeds:
            cell += f" ({len(found)} of {seeds} seeds)"
        yield f"**{cell}**" if method in means and means[method] == best else cell


def _factor(values):
    return f"{statistics.mean(values):.2f}x"


def _accuracy(line):
    return next(line[name] for name in SPLITS if name in line)


def _split(lines):
    (split,) = {SPLITS[name] for line in lines for name in SPLITS if name in line}
    return split


def _early_birds(lines):
    if not any(line["search_epochs"] for line in lines):
        return "–"
    epochs = [line["early_bird_epoch"] for line in lines]
    found = sorted({epoch for epoch in epochs if epoch is not None})
    text = f"{found[0]:g}" if len(found) == 1 else f"{found[0]:g} to {found[-1]:g}" if found else ""
    missed = f"{epochs.count(None)} of {len(epochs)} not found" if None in epochs else ""
    return "; ".join(filter(None, (text, missed)))


def _grouped(lines, *names):
    groups = {}
    for line in lines:
        groups.setdefault(tuple(line[name] for name in names), []).append(line)
    return groups


def _by_method(lines, methods):
    groups = {method: of_method for (method,), of_method in _grouped(lines, "method").items()}
    order = {method: i for i, method in enumerate(methods)}
    return {method: groups[method] for method in sorted(groups, key=lambda name: order.get(name, len(order)))}


def draw(lines: Iterable[Mapping], methods: Sequence[str] = ()) -> Figure:
    """Plot accuracy over training FLOPs relative to the dense training's, one panel per dataset and network.

    A line connects a method's means over the seeds at its ratios. tfspline's methods are coloured and labelled, with
    standard deviations; the others are grey. Outliers below Tukey's fence (1.5 interquartile ranges below the lower
    quartile) would compress the plot, so they are listed at the bottom of the panel.
    """
    lines = list(lines)
    panels, styles = _grouped(lines, "dataset", "network"), _styles(_by_method(lines, methods))
    figure = Figure(figsize=(9, 4.5 * len(panels)), layout="constrained")
    for axes, ((dataset, network), of_all) in zip(
        figure.subplots(len(panels), squeeze=False)[:, 0], panels.items(), strict=True
    ):
        _draw(axes, {method: _points(of_method) for method, of_method in _by_method(of_all, methods).items()}, styles)
        axes.set(title=f"{dataset}, {network}", ylabel=f"{_split(of_all)} accuracy (%)")
    figure.supxlabel("training FLOPs, % of the dense training (search included)", fontsize=10)
    pairs = (pair for axes in figure.axes for pair in zip(*axes.get_legend_handles_labels(), strict=True))
    handles = {label: handle for handle, label in pairs}
    labels = [label for label in styles if label in handles]
    figure.legend([handles[label] for label in labels], labels, loc="outside right center", fontsize=9)
    return figure


def _styles(methods):
    """Return the plot options of each method."""
    colors, markers = itertools.cycle(f"C{i}" for i in range(10)), itertools.cycle(_MARKERS)
    return {
        method: {"color": "black", "linestyle": "--", "linewidth": 1, "zorder": 1}
        if method == "dense"
        else {"color": next(colors), "marker": "o", "linewidth": 2, "markersize": 6, "zorder": 4}
        if method.startswith("spline")
        else {"color": "0.45", "marker": next(markers), "linewidth": 0.6, "markersize": 6, "mfc": "white", "zorder": 3}
        for method in methods
    }


class _Point(NamedTuple):
    """A method at a ratio: training FLOPs, mean and standard deviation of the accuracy, all in percent."""

    cost: float
    mean: float
    deviation: float
    ratio: float | None


def _points(lines):
    """Return the points of a method by increasing cost."""
    points = []
    for (ratio,), group in _grouped(lines, "ratio").items():
        cost = 100 * statistics.mean(1 / line["training_flops_reduction"] for line in group)
        accuracies = [100 * _accuracy(line) for line in group]
        deviation = statistics.stdev(accuracies) if len(group) > 1 else 0.0
        points.append(_Point(cost, statistics.mean(accuracies), deviation, ratio))
    return sorted(points, key=lambda point: point.cost)


def _draw(axes, points, styles):
    axes.set(xscale="log")
    for method, of_method in points.items():
        costs, means, deviations, _ = zip(*of_method, strict=True)
        if method == "dense":
            axes.axhline(means[0], label=method, **styles[method])
            axes.axhspan(means[0] - deviations[0], means[0] + deviations[0], color="black", alpha=0.08)
        elif method.startswith("spline"):
            axes.errorbar(costs, means, deviations, label=method, capsize=2, elinewidth=1, **styles[method])
        else:
            axes.plot(costs, means, label=method, **styles[method])
    _exclude_outliers(axes, points)
    _name(axes, {method: of_method[0] for method, of_method in points.items() if method.startswith("spline")}, styles)
    axes.xaxis.set_major_locator(FixedLocator([2, 5, 10, 15, 20, 30, 40, 50, 70, 100, 150, 200]))
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(alpha=0.3)


def _exclude_outliers(axes, points):
    """Limit a panel to the means above Tukey's fence, and list the others at its bottom."""
    means = [point.mean for of_method in points.values() for point in of_method]
    lower, upper = np.quantile(means, [0.25, 0.75])
    fence = lower - 1.5 * (upper - lower)
    out = [
        f"{method} {point.mean:.1f}" + (f" ({100 * point.ratio:g} % removed)" if point.ratio else "")
        for method, of_method in points.items()
        for point in of_method
        if point.mean < fence
    ]
    least, most = min(mean for mean in means if mean >= fence), max(means)
    margin = 0.12 * (most - least) or 1
    axes.set_ylim(least - margin, most + margin)
    if out:
        text = textwrap.fill(f"below: {', '.join(out)}", 110)
        axes.text(0.01, 0.015, text, transform=axes.transAxes, fontsize=8, path_effects=_HALO, zorder=5)


def _name(axes, ends, styles):
    """Write the names of methods to the left of their lines, without overlaps."""
    left, right = axes.get_xlim()
    axes.set_xlim(left / (right / left) ** 0.22, right)
    bottom, top = axes.get_ylim()
    apart = _LABELS_APART * (top - bottom)
    height = np.inf
    for method, end in sorted(ends.items(), key=lambda item: -item[1].mean):
        height, color = min(height - apart, end.mean), styles[method]["color"]
        leader = {"arrowstyle": "-", "color": color, "linewidth": 0.7}
        text = axes.annotate(method, (end.cost, end.mean), (left, height), color=color, fontsize=9, arrowprops=leader)
        text.set(ha="right", va="center", path_effects=_HALO)
