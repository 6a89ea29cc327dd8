"""Small recipes, and runs that are interrupted."""

import json

from tfspline.recipe.checkpoints import Checkpoints

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
    rows = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def interrupt(monkeypatch, stops):
    """Lets runs break off at `stops`, phases and epochs, one after the other; those that are over are taken out."""
    put = Checkpoints.put

    def interrupted(checkpoints, rows, files):
        if stops and (rows[-1]["phase"], rows[-1]["epoch"]) == stops[0]:
            stops.pop(0)
            raise InterruptedError
        put(checkpoints, rows, files)

    monkeypatch.setattr(Checkpoints, "put", interrupted)
