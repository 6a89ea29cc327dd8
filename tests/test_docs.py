"""The pages in docs/ run as they stand, block after block, in both Kerases."""

import pathlib
import re

import numpy as np

DOCS = pathlib.Path(__file__).parents[1] / "docs"


def test_custom_loops(keras, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = (
        (DOCS / "custom_loops.md").read_text(encoding="utf-8").replace("import keras\n", f"import {keras.__name__}\n")
    )
    rng = np.random.default_rng(0)
    names = {"keras": keras, "batches": [rng.normal(size=(2, 8, 6)).astype("float32") for _ in range(4)]}
    names["batches"] = [(x, x[:, :3]) for x, _ in names["batches"]]
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == 4
    for block in blocks:
        exec(compile(block, "custom_loops.md", "exec"), names)
    kernel = names["model"].get_layer("hidden").get_weights()[0]
    assert (kernel == 0).all(axis=0).sum() == 8
