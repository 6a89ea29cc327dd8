"""A SavedModel that another process, without Keras, answers from as Keras does."""

import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from tfspline.serving import export


def two_headed(keras):
    image, side = keras.Input((8, 8, 1), name="image"), keras.Input((3,), name="side")
    h = keras.layers.Conv2D(4, 3, use_bias=False)(image)
    h = keras.layers.ReLU()(keras.layers.BatchNormalization()(h))
    h = keras.layers.GlobalAveragePooling2D()(h)
    h = keras.layers.Dropout(0.5)(keras.layers.Concatenate()([h, side]))
    return keras.Model([image, side], [keras.layers.Dense(2, name="logits")(h), keras.layers.Dense(1, name="score")(h)])


def mlp(keras):
    return keras.Sequential([keras.Input((4,), name="image"), keras.layers.Dense(3, name="logits")])


def test_signature_names_inputs_and_outputs_and_frees_the_batch(keras, tmp_path):
    served = tf.saved_model.load(export(two_headed(keras), tmp_path)).signatures["serving_default"]
    _, inputs = served.structured_input_signature
    assert {name: tuple(spec.shape) for name, spec in inputs.items()} == {
        "image": (None, 8, 8, 1),
        "side": (None, 3),
    }
    assert set(served.structured_outputs) == {"logits", "score"}


def test_process_without_keras_gives_the_same_answers(keras, tmp_path, rng):
    model = two_headed(keras)
    model.layers[2].set_weights([np.asarray(w) + 0.5 for w in model.layers[2].get_weights()])
    image, side = (rng.normal(size=(5, *shape)).astype("float32") for shape in ((8, 8, 1), (3,)))
    folder = export(model, tmp_path / "serving")
    np.savez(tmp_path / "inputs.npz", image=image, side=side)
    program = (
        "import sys\n"
        "for name in ('keras', 'tf_keras', 'tfspline'): sys.modules[name] = None\n"  # makes their import fail
        "import numpy as np, tensorflow as tf\n"
        f"inputs = np.load({str(tmp_path / 'inputs.npz')!r})\n"
        f"serve = tf.saved_model.load({folder!r}).signatures['serving_default']\n"
        "outputs = serve(**{name: tf.constant(inputs[name]) for name in inputs})\n"
        f"np.savez({str(tmp_path / 'outputs.npz')!r}, **{{name: value for name, value in outputs.items()}})\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=tmp_path)
    outputs = np.load(tmp_path / "outputs.npz")
    for name, expected in zip(("logits", "score"), model([image, side], training=False), strict=True):
        np.testing.assert_allclose(outputs[name], expected, rtol=1e-5, atol=1e-5)


def test_saved_model_cli_runs_it(tmp_path):
    import keras

    model = mlp(keras)
    x = np.arange(8, dtype="float32").reshape(2, 4)
    np.save(tmp_path / "x.npy", x)
    cli = [sys.executable, "-m", "tensorflow.python.tools.saved_model_cli", "run", "--tag_set=serve"]
    cli += [f"--dir={export(model, tmp_path / 'serving')}", "--signature_def=serving_default"]
    cli += [f"--inputs=image={tmp_path / 'x.npy'}", f"--outdir={tmp_path}"]
    subprocess.run(cli, check=True, capture_output=True)
    np.testing.assert_allclose(np.load(tmp_path / "logits.npy"), model(x), rtol=1e-5, atol=1e-5)


def test_two_outputs_of_one_layer_keep_two_names(keras, tmp_path):
    x = keras.Input((4,), name="image")
    dense = keras.layers.Dense(4, name="head")
    h = dense(x)
    export(keras.Model(x, [h, dense(h)]), tmp_path)
    served = tf.saved_model.load(str(tmp_path / "1")).signatures["serving_default"]
    assert len(served.structured_outputs) == 2


def test_versions_count_up_and_nothing_else_stays(keras, tmp_path):
    model = mlp(keras)
    (tmp_path / "notes").mkdir()
    assert export(model, tmp_path) == str(tmp_path / "1")
    assert export(model, tmp_path, version=7) == str(tmp_path / "7")
    assert export(model, str(tmp_path)) == str(tmp_path / "8")
    assert sorted(os.listdir(tmp_path)) == ["1", "7", "8", "notes"]


def test_prints_nothing(keras, tmp_path, capfd):
    export(mlp(keras), tmp_path)
    assert "Saved artifact" not in capfd.readouterr().out


def test_failed_export_leaves_no_version_behind(keras, tmp_path, monkeypatch):
    def half(folder, *_):
        os.makedirs(folder)
        raise OSError("disk full")

    monkeypatch.setattr("tfspline.serving._write", lambda model, folder: half(folder))
    with pytest.raises(OSError, match="disk full"):
        export(mlp(keras), tmp_path)
    assert os.listdir(tmp_path) == []


def test_existing_version_is_refused_and_left_alone(keras, tmp_path):
    model = mlp(keras)
    export(model, tmp_path, version=2)
    (tmp_path / "2" / "mine").touch()
    with pytest.raises(FileExistsError, match="Received: 2"):
        export(model, tmp_path, version=2)
    assert (tmp_path / "2" / "mine").exists()


@pytest.mark.parametrize("version", [0, -1])
def test_version_below_one_is_refused(keras, tmp_path, version):
    with pytest.raises(ValueError, match=f"positive. Received: {version}"):
        export(mlp(keras), tmp_path, version=version)


@pytest.mark.parametrize("version", ["1", 1.0, True])
def test_version_that_is_no_integer_is_refused(keras, tmp_path, version):
    with pytest.raises(TypeError, match="integer. Received"):
        export(mlp(keras), tmp_path, version=version)


def test_file_in_place_of_the_folder_is_refused(keras, tmp_path):
    (tmp_path / "serving").touch()
    with pytest.raises(NotADirectoryError, match="which is a file"):
        export(mlp(keras), tmp_path / "serving")


def test_folder_that_cannot_be_written_is_refused(keras, tmp_path):
    if os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError):
        export(mlp(keras), tmp_path)


def test_model_that_is_not_built_is_refused(keras, tmp_path):
    with pytest.raises(ValueError, match="model that is built"):
        export(keras.Sequential([keras.layers.Dense(3)]), tmp_path)


def test_subclassed_model_is_refused(keras, tmp_path):
    class Net(keras.Model):
        def call(self, x):
            return x

    with pytest.raises(ValueError, match="functional or Sequential model"):
        export(Net(), tmp_path)


def test_what_is_no_model_is_refused(tmp_path):
    with pytest.raises(TypeError, match="Received: dict"):
        export({}, tmp_path)
