"""The report of a run: a table for the terminal, and one HTML page with all that the run has left."""

import base64
import json
import os
from collections.abc import Mapping
from pathlib import Path

import jinja2

from tfspline._utils.files import replacing

_NETWORKS = {"dense": "dense", "slim": "slim", "weights_pruned": "weights pruned"}
_ROWS = (
    ("{evaluate} accuracy", "accuracy", "{:.2%}"),
    ("parameters", "params", "{:,}"),
    ("MACs an image", "macs", "{:,}"),
    ("training FLOPs (2 x MACs)", "training_flops", "{:.3e}"),
    ("training time (s)", "seconds", "{:.1f}"),
)
_PICTURES = {
    "training.png": "Accuracy and distance of the partition, epoch by epoch.",
    "accuracy.png": "Accuracy of each network, and what its training cost.",
    "partition.png": "The partition of the input space in the end: on each region the network is one affine map.",
    "distances.png": "How far the partitions of the dense network are apart, each epoch against each other.",
    "layer_distances.png": "How far each layer's part of the partition moved in an epoch.",
    "units.png": "Units that each layer kept.",
}


def table(summary: Mapping) -> str:
    """The closing table of a run, dense network against slim one.

    Args:
        summary: what `run` returns; without a baseline the dense network has no accuracy and no time.

    Returns:
        A table of lines, FLOPs being 2 x MACs.
    """
    names, rows = _compared(summary)
    line = ("{:<26}" + " {:>14}" * len(names) + " {:>10}").format
    lines = [line("", *names, "reduction"), *(line(*row) for row in rows)]
    return "\n".join([*lines, *_milestones(summary)])


def write(run_dir: str | os.PathLike) -> None:
    """Writes `report.html` into the folder of a run that is over: one file that needs no other and no network.

    Args:
        run_dir: the folder that `run` left: with `summary.json`, `history.jsonl`, `flags.cfg` and the
            pictures, of which any may be missing.

    Raises:
        FileNotFoundError: the run is not over, or the folder holds none.
    """
    folder = Path(run_dir)
    summary, history, flags = (
        (folder / name).read_text(encoding="utf-8") for name in ("summary.json", "history.jsonl", "flags.cfg")
    )
    summary = json.loads(summary)
    history = [json.loads(line) for line in history.splitlines()]
    names, compared = _compared(summary)
    pictures = [_picture(folder / name, caption) for name, caption in _PICTURES.items() if (folder / name).exists()]
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
        pictures=pictures,
        columns=list(dict.fromkeys(name for row in history for name in row)),
        history=history,
        flags=flags,
    )
    with replacing(folder / "report.html") as file:
        file.write(page)


def _picture(path, caption):
    data = path.read_bytes()
    return {
        "caption": caption,
        "data": base64.b64encode(data).decode("ascii"),
        "width": int.from_bytes(data[16:20], "big"),  # where a PNG has it
    }


def _compared(summary):
    """The names of the networks that were trained, and a row of texts for each thing in which they differ."""
    networks = {name: summary[name] for name in _NETWORKS if name in summary}
    rows = []
    for label, key, form in _ROWS:
        texts = [form.format(of[key]) if key in of else "-" for of in networks.values()]
        dense, slim = summary["dense"].get(key), summary["slim"][key]
        reduction = f"{dense / slim:.2f}x" if dense is not None and key != "accuracy" else ""
        rows.append([label.format_map(summary), *texts, reduction])
    return [_NETWORKS[name] for name in networks], rows


def _milestones(summary):
    def when(step):
        return f"at epoch {step / summary['steps_per_epoch']:.3g} of {summary['epochs']}"

    bird = summary["early_bird_step"]
    if summary["search_epochs"]:
        yield f"early bird: {when(bird)}" if bird else "early bird: not found"
    yield (
        f"made small {when(summary['pruned_step'])}; masked and slim network were the same function, "
        f"to {summary['masked_slim_difference']:.1e} of the largest output"
    )
    if summary["retrain_from"] != "trained":
        yield f"trained from epoch 0 on, with {summary['retrain_from']} weights"
    for name, label in _NETWORKS.items():
        if dead := summary.get(name, {}).get("dead_layers"):
            yield f"dead layers of the {label} network, where no unit is on for any image: {', '.join(dead)}"
