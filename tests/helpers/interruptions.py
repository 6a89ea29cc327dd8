"""Recipes of five steps per epoch for tests that interrupt runs."""

import keras as keras3
import pytest
import tf_keras

# 5 steps per epoch.
SMALL = {
    **{"network": "mlp", "width": 0.25, "batch_size": 256, "augment": "crop", "validation_split": 0.1},
    **{"epochs": 3, "search_epochs": 2, "eb_threshold": 0.9, "eb_lookback": 1, "learning_rate": 0.02, "ratio": 0.5},
}
RECIPES = {
    "one_shot": {},
    "gradual": {"schedule": "early_bird", "eb_every": 2, "epochs": 4, "pruning_epochs": 1},
    "compared": {"search_epochs": 1, "baseline": True, "weight_pruning": True},
    "restarted": {"eb_every": 3, "retrain_from": "random"},
}


def recipes(*ordinary):
    """Both Keras versions with each recipe; all but the `ordinary` pairs of Keras and name are marked slow."""
    return [
        pytest.param(
            keras,
            fields,
            id=f"{keras.__name__}-{name}",
            marks=() if (keras, name) in ordinary else pytest.mark.slow,
        )
        for keras in (keras3, tf_keras)
        for name, fields in RECIPES.items()
    ]
