"""A small recipe, a function that interrupts runs, and functions that read the files of a run."""

import json

from tfspline.recipe.checkpoints import Checkpoints

# 10 steps per epoch; the early bird is found after epoch 3.
SMALL = {
    "network": "mlp",
    "width": 0.25,
    "epochs": 6,
    "search_epochs": 4,
    "eb_threshold": 0.9,
    "eb_lookback": 2,
    "learning_rate": 0.02,
    "augment": "crop",
    "ratio": 0.5,
    "validation_split": 0.1,
    "baseline": True,
}


def rows_of(folder):
    """The history of a run without times."""
    rows = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def phases_of(folder):
    """The phase and epoch of each row of the history."""
    return [(row["phase"], row["epoch"]) for row in rows_of(folder)]


def interrupt(monkeypatch, stops):
    """Raise an InterruptedError before the checkpoints of the (phase, epoch) pairs `stops`, once for each, in order."""
    put = Checkpoints.put

    def interrupted(checkpoints, rows, files):
        if stops and (rows[-1]["phase"], rows[-1]["epoch"]) == stops[0]:
            stops.pop(0)
            raise InterruptedError
        put(checkpoints, rows, files)

    monkeypatch.setattr(Checkpoints, "put", interrupted)


def end_of(folder, keras):
    """The results of a run, without times: file names, history, summary, plan and weights."""
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    weights = {
        path.name: [weight.tobytes() for weight in keras.models.load_model(path).get_weights()]
        for path in sorted(folder.glob("*.keras"))
    }
    texts = {name: json.loads((folder / name).read_text()) for name in ("summary.json", "plan.json")}
    return {
        "files": sorted(name for name in files if not name.startswith("logs") and name != ".lock"),
        "history": rows_of(folder),
        "summary": _untimed(texts["summary.json"]),
        "plan": texts["plan.json"],
        "weights": weights,
    }


def _untimed(summary):
    if not isinstance(summary, dict):
        return summary
    return {name: _untimed(value) for name, value in summary.items() if name != "seconds"}
