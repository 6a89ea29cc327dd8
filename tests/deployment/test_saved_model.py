"""What `tfspline.export` writes. test_serving_loaders.py loads exports without Keras."""

import json
import os
import pathlib
import sys
import time

import numpy as np
import pytest
import tensorflow as tf
from helpers.heads import two_headed

import tfspline
from tfspline.deployment.saved_model import export


def mlp(keras):
    return keras.Sequential([keras.Input((4,), name="image"), keras.layers.Dense(3, name="logits")])


def convnet(keras):
    layers = [keras.layers.Conv2D(4, 3, activation="relu"), keras.layers.GlobalAveragePooling2D()]
    return keras.Sequential([keras.Input((8, 8, 3), name="pixels"), *layers, keras.layers.Dense(3, name="logits")])


def images(rng, height, width):
    return rng.integers(0, 256, (2, height, width, 3), np.uint8)


def signature(folder, name="serving_default"):
    # Keeps the model alive while its signature is called.
    signature.model = tf.saved_model.load(folder)
    return signature.model.signatures[name]


def close(answer, expected):
    np.testing.assert_allclose(answer, expected, rtol=1e-5, atol=1e-5)


def test_signature_has_names_of_inputs_and_outputs_and_a_free_batch(keras, tmp_path):
    served = tf.saved_model.load(export(two_headed(keras), tmp_path)).signatures["serving_default"]
    _, inputs = served.structured_input_signature
    assert {name: tuple(spec.shape) for name, spec in inputs.items()} == {
        "image": (None, 8, 8, 1),
        "side": (None, 3),
    }
    assert set(served.structured_outputs) == {"logits", "score"}


def test_two_outputs_of_one_layer_get_different_names(keras, tmp_path):
    x = keras.Input((4,), name="image")
    dense = keras.layers.Dense(4, name="head")
    h = dense(x)
    export(keras.Model(x, [h, dense(h)]), tmp_path)
    served = tf.saved_model.load(str(tmp_path / "1")).signatures["serving_default"]
    assert len(served.structured_outputs) == 2


def test_inputs_in_a_dict_are_matched_by_name(keras, tmp_path):
    late, early = keras.Input((2,), name="late"), keras.Input((3,), name="early")
    output = keras.layers.Concatenate(name="both")([late, early])
    served = signature(export(keras.Model({"late": late, "early": early}, output), tmp_path))
    both = served(late=tf.zeros((1, 2)), early=tf.ones((1, 3)))["both"]
    np.testing.assert_array_equal(both, [[0, 0, 1, 1, 1]])


def test_mixed_precision_outputs_keep_their_dtype(keras, tmp_path, rng):
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        model = mlp(keras)
    finally:
        keras.mixed_precision.set_global_policy("float32")
    x = rng.normal(size=(2, 4)).astype("float32")
    folder = export(model, tmp_path, class_names=["a", "b", "c"])
    logits = signature(folder)(image=tf.constant(x))["logits"]
    assert logits.dtype == tf.bfloat16
    np.testing.assert_array_equal(tf.cast(logits, tf.float32), tf.cast(model(x), tf.float32))
    scores = signature(folder, "classify")(image=tf.constant(x))["scores"]
    np.testing.assert_array_equal(scores, np.sort(tf.cast(model(x), tf.float32))[:, ::-1])


def test_preprocessing_of_float_inputs(keras, tmp_path, rng):
    model, x = mlp(keras), rng.normal(size=(3, 4)).astype("float32")
    served = signature(export(model, tmp_path, preprocessing=lambda x: (x - 1) / 2))
    close(served(image=tf.constant(x))["logits"], model((x - 1) / 2))


def test_preprocessing_may_be_a_layer_with_state(keras, tmp_path, rng):
    model, x = mlp(keras), rng.normal(3, 2, size=(50, 4)).astype("float32")
    normalization = keras.layers.Normalization()
    normalization.adapt(x)
    served = signature(export(model, tmp_path, preprocessing=normalization))
    close(served(image=tf.constant(x))["logits"], model(normalization(x)))


def test_images_of_any_size_are_preprocessed_and_resized(keras, tmp_path, rng):
    model, x = convnet(keras), images(rng, 20, 30)
    served = signature(export(model, tmp_path, input="image", preprocessing=lambda x: (x - 100) / 50))
    assert served.structured_input_signature[1]["image"].dtype == tf.uint8
    normalized = (x.astype("float32") - 100) / 50
    close(served(image=tf.constant(x))["logits"], model(tf.image.resize(normalized, (8, 8))))


def test_images_of_the_right_size_are_not_resized(keras, tmp_path, rng):
    model, x = convnet(keras), images(rng, 8, 8)
    served = signature(export(model, tmp_path, input="image"))
    close(served(image=tf.constant(x))["logits"], model(x.astype("float32")))


def test_image_files_of_different_formats_and_sizes_form_a_batch(keras, tmp_path, rng):
    model, a, b = convnet(keras), images(rng, 9, 12)[0], images(rng, 30, 20)[0]
    files = [tf.io.encode_jpeg(a), tf.io.encode_png(b), tf.io.encode_jpeg(b)]
    served = signature(export(model, tmp_path, input="image_bytes", preprocessing=lambda x: x / 255))
    decoded = [tf.cast(tf.io.decode_image(file), tf.float32) / 255 for file in files]
    expected = model(tf.stack([tf.image.resize(image, (8, 8)) for image in decoded]))
    close(served(image_bytes=tf.stack(files))["logits"], expected)


def test_images_are_resized_after_preprocessing_crops_them(keras, tmp_path, rng):
    model, x = convnet(keras), images(rng, 20, 20)
    served = signature(export(model, tmp_path, input="image_bytes", preprocessing=lambda x: x[:, 4:12, 8:16]))
    files = tf.stack([tf.io.encode_png(image) for image in x])
    close(served(image_bytes=files)["logits"], model(x[:, 4:12, 8:16].astype("float32")))


def test_classify_returns_the_best_names_first(keras, tmp_path):
    model = keras.Sequential([keras.Input((3,), name="score"), keras.layers.ReLU()])
    served = signature(export(model, tmp_path, class_names=["ant", "bee", "cät"], top_k=2), "classify")
    answer = served(score=tf.constant([[1.0, 3, 2], [5, 4, 6]]))
    names = [[name.decode() for name in row] for row in answer["classes"].numpy()]
    assert names == [["bee", "cät"], ["cät", "ant"]]
    np.testing.assert_array_equal(answer["scores"], [[3, 2], [6, 5]])


def test_classify_returns_all_classes_if_there_are_fewer_than_top_k(keras, tmp_path):
    served = signature(export(mlp(keras), tmp_path, class_names=["a", "b", "c"]), "classify")
    assert served(image=tf.zeros((2, 4)))["classes"].shape == (2, 3)


@pytest.mark.sweep(2)
@pytest.mark.parametrize("input", [None, "image", "image_bytes"])
def test_warmup_requests_run_on_each_signature(keras, tmp_path, input):
    apis = pytest.importorskip("tensorflow_serving.apis.prediction_log_pb2")
    folder = export(convnet(keras), tmp_path / "net", input=input, class_names=["a", "b", "c"], warmup=(1, 4))
    served = tf.saved_model.load(folder).signatures
    ran = []
    for record in tf.data.TFRecordDataset(f"{folder}/assets.extra/tf_serving_warmup_requests"):
        request = apis.PredictionLog.FromString(record.numpy()).predict_log.request
        assert request.model_spec.name == "net"
        name = request.model_spec.signature_name
        outputs = served[name](**{key: tf.constant(tf.make_ndarray(value)) for key, value in request.inputs.items()})
        ran.append((name, *{len(value) for value in outputs.values()}))
    assert ran == [("serving_default", 1), ("serving_default", 4), ("classify", 1), ("classify", 4)]


def test_warmup_without_its_package_raises_and_says_what_to_install(keras, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_serving.apis", None)
    with pytest.raises(ImportError, match=r"pip install .tfspline\[serving\]"):
        export(mlp(keras), tmp_path / "net", warmup=[1])
    assert not (tmp_path / "net").exists()


def test_metadata_and_plan_are_written_to_assets_extra(keras, tmp_path):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(2)])
    plan = tfspline.plan(model, 0.5)
    folder = export(plan.apply(model), tmp_path, plan=plan, metadata={"accuracy": {"dense": 0.93, "slim": 0.92}})
    extra = pathlib.Path(folder, "assets.extra")
    known = json.loads((extra / "tfspline.json").read_text())
    # Dense: 8 + 2 units, 4 x 8 + 8 x 2 MACs, 10 biases. Slim: 4 + 2 units, 4 x 4 + 4 x 2 MACs, 6 biases.
    assert known == {
        "format": "tfspline.export.1",
        "model": model.name,
        "params": 30,
        "macs": 24,
        "ratio": 0.4,
        "dense": {"units": 10, "params": 58, "macs": 48},
        "metadata": {"accuracy": {"dense": 0.93, "slim": 0.92}},
    }
    assert (tfspline.Plan.load(extra / "plan.json", model).removed == plan.removed).all()


def test_macs_are_null_if_input_sizes_are_unknown(keras, tmp_path):
    image = keras.Input((None, None, 3))
    folder = export(keras.Model(image, keras.layers.Conv2D(2, 3)(image)), tmp_path)
    known = json.loads(pathlib.Path(folder, "assets.extra", "tfspline.json").read_text())
    assert (known["params"], known["macs"]) == (56, None)


def test_lookup_tables_are_exported(keras, tmp_path):
    lookup = keras.layers.StringLookup(vocabulary=["x", "y"], name="index")
    model = keras.Sequential([keras.Input((1,), dtype="string", name="word"), lookup])
    served = signature(export(model, tmp_path))
    np.testing.assert_array_equal(served(word=tf.constant([["y"], ["z"]]))["index"], [[2], [0]])


def test_versions_count_up_and_leave_no_other_files(keras, tmp_path):
    model = mlp(keras)
    (tmp_path / "notes").mkdir()
    assert export(model, tmp_path) == str(tmp_path / "1")
    assert export(model, tmp_path, version=7) == str(tmp_path / "7")
    assert export(model, str(tmp_path)) == str(tmp_path / "8")
    assert sorted(os.listdir(tmp_path)) == ["1", "7", "8", "notes"]


def test_export_prints_nothing(keras, tmp_path, capfd):
    export(mlp(keras), tmp_path)
    assert "Saved artifact" not in capfd.readouterr().out


def test_failed_export_leaves_no_version_behind(keras, tmp_path, monkeypatch):
    def half(folder, *_):
        os.makedirs(folder)
        raise OSError("disk full")

    monkeypatch.setattr("tfspline.deployment.signatures.write", lambda model, endpoints, folder: half(folder))
    with pytest.raises(OSError, match="disk full"):
        export(mlp(keras), tmp_path)
    assert os.listdir(tmp_path) == []


def test_existing_version_raises_and_is_not_changed(keras, tmp_path):
    model = mlp(keras)
    export(model, tmp_path, version=2)
    (tmp_path / "2" / "mine").touch()
    with pytest.raises(FileExistsError, match="Version 2 already exists"):
        export(model, tmp_path, version=2)
    assert (tmp_path / "2" / "mine").exists()


def test_version_lower_than_an_existing_one_raises(keras, tmp_path):
    (tmp_path / "7").mkdir()
    with pytest.raises(ValueError, match="higher than 7.*Received: 3"):
        export(mlp(keras), tmp_path, version=3)
    assert os.listdir(tmp_path) == ["7"]


@pytest.mark.sweep(2)
@pytest.mark.parametrize("version", [0, -1, "1", 1.0, True])
def test_version_that_is_not_a_positive_integer_raises(keras, tmp_path, version):
    with pytest.raises(ValueError, match=f"`version`.* integer .*Received: {version!r}"):
        export(mlp(keras), tmp_path, version=version)


def test_file_in_place_of_the_folder_raises(keras, tmp_path):
    (tmp_path / "serving").touch()
    with pytest.raises(NotADirectoryError, match="which is a file"):
        export(mlp(keras), tmp_path / "serving")


def test_folder_without_write_permission_raises(keras, tmp_path):
    (tmp_path / "serving").mkdir(mode=0o500)
    user = os.geteuid()
    try:
        if user == 0:  # may write anywhere
            tmp_path.chmod(0o755)
            os.seteuid(65534)
        with pytest.raises(PermissionError):
            export(mlp(keras), tmp_path / "serving")
    finally:
        os.seteuid(user)
    assert os.listdir(tmp_path / "serving") == []


def test_leftovers_of_killed_exports_are_removed_after_a_day(keras, tmp_path):
    for name, age in ((".export-old", 2), (".export-new", 0)):
        (tmp_path / name / "version").mkdir(parents=True)
        os.utime(tmp_path / name, (time.time() - age * 24 * 60 * 60,) * 2)
    export(mlp(keras), tmp_path)
    assert sorted(os.listdir(tmp_path)) == [".export-new", "1"]


def test_concurrent_exports_get_different_versions(keras, tmp_path, monkeypatch):
    rename, faster = os.rename, []

    def late(source, target):
        if not faster:  # another process is faster
            faster.append(target)
            pathlib.Path(target).mkdir()
            pathlib.Path(target, "saved_model.pb").touch()
        rename(source, target)

    monkeypatch.setattr(os, "rename", late)
    assert export(mlp(keras), tmp_path) == str(tmp_path / "2")
    assert faster == [str(tmp_path / "1")]
