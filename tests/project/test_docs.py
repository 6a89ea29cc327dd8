"""The pages in docs/ run as they stand, block after block, in both Kerases."""

import pathlib
import re

import tf_keras

DOCS = pathlib.Path(__file__).parents[2] / "docs"
COLUMNS = re.compile(r"<td>\n\n```python\n(.*?)```\n\n</td><td>\n\n```python\n(.*?)```\n\n</td>", re.DOTALL)
BLOCKS = re.compile(r"```python\n(.*?)```", re.DOTALL)


def run(page, blocks, keras, names):
    """Runs blocks of a page one after the other, `import keras` being that of the Keras at hand."""
    for block in blocks:
        code = re.sub(r"^import keras$", f"import {keras.__name__} as keras", block, flags=re.MULTILINE)
        exec(compile(code, page, "exec"), names)
    return names


def pairs(rng, batches):
    """Inputs [batches, 8, 6] and what is to be learned of them, [batches, 8, 3]."""
    x = rng.normal(size=(batches, 8, 6)).astype("float32")
    return x, x[..., :3]


def test_custom_loops(keras, rng, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = BLOCKS.findall((DOCS / "custom_loops.md").read_text(encoding="utf-8"))
    assert len(blocks) == 4
    names = run("custom_loops.md", blocks, keras, {"batches": list(zip(*pairs(rng, 4), strict=True))})
    kernel = names["model"].get_layer("hidden").get_weights()[0]
    assert (kernel == 0).all(axis=0).sum() == 8


def coming_from_tfmot():
    """What stands left, right, and in one column below."""
    text = (DOCS / "coming_from_tfmot.md").read_text(encoding="utf-8")
    left, right = zip(*COLUMNS.findall(text), strict=True)
    both = BLOCKS.findall(COLUMNS.sub("", text))
    assert len(left) == 8 and len(both) == 2 and len(BLOCKS.findall(text)) == 18
    return left, right, both


def test_coming_from_tfmot_left(tfmot, rng):
    left, _, both = coming_from_tfmot()
    x, y = (array.reshape(128, -1) for array in pairs(rng, 16))
    names = run("coming_from_tfmot.md", left, tf_keras, {"x": x, "y": y})
    assert names["some"].layers[0].pruning_vars and not hasattr(names["some"].layers[1], "pruning_vars")
    assert (names["final"].get_layer("hidden").get_weights()[0] == 0).mean() == 0.5
    names = run("coming_from_tfmot.md", both, tf_keras, names)
    assert 0 < names["masks"].off.sum() < 16


def test_coming_from_tfmot_right(keras, tfmot, rng):
    x, y = (array.reshape(128, -1) for array in pairs(rng, 16))
    names = run("coming_from_tfmot.md", coming_from_tfmot()[1], keras, {"x": x, "y": y})
    assert names["final"].get_layer("hidden").units == 8
    assert names["history"].history["pruning_sparsity"][-1] == 0.5
    assert names["lite"]
