"""The results of a grid: lines of JSON, a Markdown table of them, and the picture accuracy against training FLOPs."""

import itertools
import json
import os
import statistics
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, ScalarFormatter

_COLORS = [f"C{i}" for i in range(10)]
_MARKERS = "osD^vPX"  # as many as are prime to the colors: no two methods look alike
KEY = ("dataset", "network", "method", "ratio", "seed")
SPLITS = {"accuracy": "test", "validation_accuracy": "validation"}


class Results:
    """`results.jsonl`: a line a finished cell, which no interruption takes back.

    Attributes:
        lines: the key of a cell, the values of `KEY` -> its line.

    Raises:
        ValueError: a line that is no JSON, other than a last one that was cut short.
    """

    def __init__(self, path: str):
        self.path, self.lines = path, {}
        if os.path.exists(path):
            with open(path, encoding="utf-8") as file:
                *whole, torn = file.read().split("\n")
            if torn:  # a process that was killed wrote this far
                os.truncate(path, os.path.getsize(path) - len(torn.encode()))
            for number, text in enumerate(whole, start=1):
                try:
                    line = json.loads(text)
                except json.JSONDecodeError as error:
                    raise ValueError(f"Expected JSON in line {number} of {path!r}. Received: {text!r}") from error
                self.lines[key_of(line)] = line

    def add(self, line: Mapping) -> None:
        """Keeps the line of a cell."""
        self.lines[key_of(line)] = dict(line)
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())


def key_of(line: Mapping) -> tuple:
    """The key of the cell that a line is of."""
    return tuple(line[name] for name in KEY)


def table(lines: Iterable[Mapping], methods: Sequence[str] = ()) -> str:
    """Means over the seeds, and the standard deviation of the accuracy, as Markdown.

    For each dataset and network a table whose rows are methods, in the order of `methods`. Time is the dense training's
    of the same seed over the method's own; the early bird's epochs are the least and the most.
    """
    sections = []
    for (dataset, network), of_all in _grouped(lines, "dataset", "network").items():
        (split,) = {SPLITS[name] for line in of_all for name in SPLITS if name in line}
        seeds = {line["seed"] for line in of_all}
        ratios = sorted({line["ratio"] for line in of_all if line["ratio"] is not None})
        dense = {line["seed"]: line["seconds"] for line in of_all if line["method"] == "dense"}
        common = set.intersection(*(set(line["options"].items()) for line in of_all))
        options = " ".join(f"--{name}={text}" for name, text in of_all[0]["options"].items() if (name, text) in common)
        sections.append(f"### {dataset}, {network}\n")
        sections.append(f"{len(seeds)} seeds; accuracy on {split} images; all with `{options}`\n")
        for columns in ([None], ratios):
            found = [line for line in of_all if line["ratio"] in columns]
            if found:
                rows = _rows(found, columns, methods, dense, len(seeds))
                sections += ["\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"]
    return "\n".join(sections)


def _rows(lines, columns, methods, dense, seeds):
    titles = [f"{ratio:.0%}: " if ratio is not None else "" for ratio in columns]
    kinds = ("accuracy, %", "training FLOPs, fewer", "time, less")
    yield ["method", *(title + kind for title in titles for kind in kinds), "early bird, epoch"]
    yield ["---", *(["---:"] * (len(kinds) * len(columns) + 1))]
    for method, of_method in _by_method(lines, methods).items():
        row = [f"`{method}`"]
        for ratio in columns:
            cell = [line for line in of_method if line["ratio"] == ratio]
            row += _cell(cell, dense, seeds) if cell else ["–"] * len(kinds)
        yield [*row, _birds(of_method)]


def _cell(lines, dense, seeds):
    mean, deviation = _accuracy(lines)
    text = f"{mean:.2f}" if len(lines) == 1 else f"{mean:.2f} ± {deviation:.2f}"
    times = [dense[line["seed"]] / line["seconds"] for line in lines if line["seed"] in dense]
    return [
        text if len(lines) == seeds else f"{text} ({len(lines)} of {seeds} seeds)",
        f"{statistics.mean(line['training_flops_reduction'] for line in lines):.2f}x",
        f"{statistics.mean(times):.2f}x" if times else "–",
    ]


def _accuracy(lines):
    """Mean and standard deviation in percent."""
    values = [100 * next(line[name] for name in SPLITS if name in line) for line in lines]
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def _birds(lines):
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
    """Accuracy against training FLOPs as a share of the dense training's, one panel a dataset and network.

    A line is a method through its ratios: means with standard deviations over the seeds; `spline` and its like are
    bold. Methods cost nearly the same at a ratio, so they are drawn side by side, up to 5 % off their cost.
    """
    panels = _grouped(lines, "dataset", "network")
    figure = Figure(figsize=(5 * len(panels) + 1.6, 5), layout="constrained")
    all_methods = list(_by_method([line for line in lines if line["method"] != "dense"], methods))
    pairs = zip(itertools.cycle(_MARKERS), itertools.cycle(_COLORS), strict=True)
    looks = dict(zip(all_methods, pairs, strict=False))
    for axes, ((dataset, network), of_all) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True
    ):
        for method, of_method in _by_method(of_all, methods).items():
            groups = _grouped(of_method, "ratio")
            points = [
                (100 * statistics.mean(1 / line["training_flops_reduction"] for line in group), *_accuracy(group))
                for _, group in sorted(groups.items(), reverse=True)
            ]
            costs, means, deviations = (np.array(values) for values in zip(*points, strict=True))
            if method == "dense":
                axes.axhline(means[0], color="black", linestyle="--", linewidth=1, label="dense", zorder=1)
                axes.axhspan(means[0] - deviations[0], means[0] + deviations[0], color="black", alpha=0.08)
                continue
            marker, color = looks[method]
            ours = method.startswith("spline")
            if groups.keys() != {(None,)}:
                costs = costs * 1.1 ** (all_methods.index(method) / max(1, len(all_methods) - 1) - 0.5)
            axes.errorbar(
                costs, means, deviations, label=method, marker=marker, color=color, capsize=2, elinewidth=0.8,
                linewidth=2 if ours else 0.8, markersize=7 if ours else 5, alpha=1 if ours else 0.8,
                zorder=3 if ours else 2,
            )  # fmt: skip
        (split,) = {SPLITS[name] for line in of_all for name in SPLITS if name in line}
        axes.set(title=f"{dataset}, {network}", xscale="log", ylabel=f"{split} accuracy (%)")
        axes.xaxis.set_major_locator(FixedLocator([2, 5, 10, 15, 20, 30, 40, 50, 70, 100, 150, 200]))
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.xaxis.set_minor_locator(NullLocator())
        axes.grid(alpha=0.3)
    figure.supxlabel("training FLOPs, % of the dense training's (search included)", fontsize=10)
    pairs = (pair for axes in figure.axes for pair in zip(*axes.get_legend_handles_labels(), strict=True))
    handles = {label: handle for handle, label in pairs}
    labels = [label for label in ["dense", *all_methods] if label in handles]
    figure.legend([handles[label] for label in labels], labels, loc="outside right center", fontsize=9)
    return figure
