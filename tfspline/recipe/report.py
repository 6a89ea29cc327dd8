"""The report of a run: a table for the terminal, and a self-contained HTML page."""

import base64
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import jinja2

from tfspline._utils.files import write_text
from tfspline.recipe.checkpoints import from_lines

_NETWORKS = {"dense": "dense", "slim": "slim", "weights_pruned": "weights pruned"}
_ROWS = (
    ("{evaluate} accuracy", "accuracy", "{:.2%}"),
    ("parameters", "params", "{:,}"),
    ("MACs per image", "macs", "{:,}"),
    ("training FLOPs (2 x MACs)", "training_flops", "{:.3e}"),
    ("training time (s)", "seconds", "{:.1f}"),
)
_PICTURES = {
    "training.png": "Accuracy and partition distance after each epoch.",
    "accuracy.png": "Accuracy of each network against the FLOPs of its training.",
    "partition.png": "Partition of the input space at the end. On each region, the network is one affine map.",
    "distances.png": "Distances between the partitions of the dense network after any two epochs.",
    "layer_distances.png": "Distance that the partition of each layer moved in an epoch.",
    "units.png": "Number of units that each layer kept.",
}


def table(summary: Mapping) -> str:
    """The final table of a run as text, with one column per network."""
    names, rows = _compared(summary)
    line = ("{:<26}" + " {:>14}" * len(names) + " {:>10}").format
    lines = [line("", *names, "reduction"), *(line(*row) for row in rows)]
    return "\n".join([*lines, *_milestones(summary)])


def write(run_dir: str | os.PathLike, summary: Mapping) -> None:
    """Write `report.html` into the folder of a run, with the pictures in it; the page needs no other file."""
    folder = Path(run_dir)
    history = from_lines((folder / "history.jsonl").read_text("utf-8"))
    names, compared = _compared(summary)
    templates = jinja2.Environment(
        loader=jinja2.PackageLoader("tfspline.recipe"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    page = templates.get_template("report.html").render(
        summary=summary,
        names=names,
        compared=compared,
        milestones=_milestones(summary),
        pictures=[_picture(folder / name, text) for name, text in _PICTURES.items() if (folder / name).exists()],
        columns=list(dict.fromkeys(name for row in history for name in row)),
        history=history,
        flags=(folder / "flags.cfg").read_text("utf-8"),
    )
    write_text(folder / "report.html", page)


def _picture(path, caption):
    data = path.read_bytes()
    return {
        "caption": caption,
        "data": base64.b64encode(data).decode("ascii"),
        "width": int.from_bytes(data[16:20], "big"),  # position in the header of a PNG file
    }


def _compared(summary):
    """The names of the networks, and a row of texts for each property."""
    networks = {name: summary[name] for name in _NETWORKS if name in summary}
    rows = []
    for label, key, form in _ROWS:
        texts = [form.format(of[key]) if key in of else "-" for of in networks.values()]
        dense, slim = summary["dense"].get(key), summary["slim"][key]
        reduction = f"{dense / slim:.2f}x" if dense is not None and key != "accuracy" else ""
        rows.append([label.format_map(summary), *texts, reduction])
    return [_NETWORKS[name] for name in networks], rows


def _milestones(summary) -> Iterator[str]:
    def when(step):
        return f"at epoch {step / summary['steps_per_epoch']:.3g} of {summary['epochs']}"

    bird = summary["early_bird_step"]
    if summary["search_epochs"]:
        yield f"early bird: {when(bird)}" if bird else "early bird: not found"
    yield (
        f"pruned {when(summary['pruned_step'])}; the masked and the slim network agree to "
        f"{summary['masked_slim_difference']:.1e} of the largest output"
    )
    if summary["retrain_from"] != "trained":
        yield f"retrained from epoch 0 with {summary['retrain_from']} weights"
    for name, label in _NETWORKS.items():
        if dead := summary.get(name, {}).get("dead_layers"):
            yield f"dead layers of the {label} network, where no unit is active for any image: {', '.join(dead)}"
