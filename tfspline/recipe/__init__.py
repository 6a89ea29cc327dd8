"""The whole recipe: search, prune, retrain, report; `train.py` runs it."""
