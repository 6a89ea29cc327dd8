"""Image folders, in memory and as files."""

import itertools
import json

import numpy as np
import pytest
from helpers.images import assert_same, smooth, take, write
from PIL import Image

from tfspline import datasets as data
from tfspline.datasets import image_files
from tfspline.datasets.image_files import ImageFiles, naming_files
from tfspline.recipe.recipe import Recipe
from tfspline.recipe.runner import run


@pytest.fixture
def image_dir(tmp_path, rng):
    for part, n in (("train", 3), ("test", 2)):
        for class_name in ("cat", "dog"):
            for index in range(n):
                image = rng.integers(0, 256, (6, 4, 3)).astype(np.uint8)
                write(tmp_path / part / class_name / f"{index}.png", image)
                np.save(tmp_path / f"{part}-{class_name}-{index}.npy", image)
    return tmp_path


def test_images_and_labels_are_read_exactly(image_dir):
    folder = data.load("image_folder", data_dir=str(image_dir))
    assert folder.class_names == ("cat", "dog")
    assert folder.input_shape == (6, 4, 3)
    for part, split in (("train", folder.train), ("test", folder.test)):
        n = len(split) // 2
        np.testing.assert_array_equal(split.labels, [0] * n + [1] * n)
        expected = [np.load(image_dir / f"{part}-{c}-{index}.npy") for c in ("cat", "dog") for index in range(n)]
        np.testing.assert_array_equal(split.images, expected)


def test_grey_images_have_one_channel(tmp_path, rng):
    for part in ("train", "test"):
        for class_name in "ab":
            write(tmp_path / part / class_name / "0.png", np.full((4, 4, 1), 9, np.uint8))
    folder = data.load("image_folder", data_dir=tmp_path)
    assert folder.input_shape == (4, 4, 1)
    assert np.all(folder.train.images == 9)


def test_images_are_resized(image_dir):
    write(image_dir / "train" / "cat" / "1.png", np.full((9, 9, 3), 200, np.uint8))
    assert np.all(data.load("image_folder", data_dir=image_dir).train.images[1] == 200)
    folder = data.load("image_folder", data_dir=image_dir, image_size=(5, 7))
    assert folder.input_shape == (5, 7, 3)
    assert np.all(folder.train.images[1] == 200)


def test_sample_mixes_the_classes_of_a_folder(image_dir):
    folder = data.load("image_folder", data_dir=image_dir, seed=3)
    images, labels = folder.sample(len(folder.train))
    assert labels.tolist() != sorted(labels) and sorted(labels) == sorted(folder.train.labels)
    whole = folder.normalize(folder.train.images).numpy()
    order = [np.flatnonzero((whole == image).all((1, 2, 3))) for image in images]
    np.testing.assert_array_equal(folder.train.labels[np.concatenate(order)], labels)
    np.testing.assert_array_equal(folder.sample(2)[1], folder.sample(2)[1])
    assert len(folder.sample(10**6)[0]) == len(folder.train)


@pytest.fixture
def folder(tmp_path, rng):
    """Nine cats (JPEG) and nine dogs (PNG) for training, three of each for testing, in different sizes."""
    for part, n in (("train", 9), ("test", 3)):
        for class_name, kind in (("cat", "jpg"), ("dog", "png")):
            for index in range(n):
                write(tmp_path / part / class_name / f"{index}.{kind}", smooth(rng, 20 + index, 30 - index))
    return tmp_path


@pytest.fixture
def streamed(folder, monkeypatch):
    """A function that loads the folder as files, since the memory limit is too low for it."""
    monkeypatch.setattr(image_files, "MEMORY_LIMIT", 24 * 16 * 12 * 3 - 1)
    return lambda **options: data.load("image_folder", data_dir=folder, image_size=(16, 12), **options)


def test_large_folders_stay_files(streamed, folder, monkeypatch):
    dataset = streamed()
    assert isinstance(dataset.train.images, ImageFiles) and isinstance(dataset.test.images, ImageFiles)
    assert (dataset.class_names, dataset.input_shape, dataset.of_images) == (("cat", "dog"), (16, 12, 3), True)
    assert sorted(dataset.train.images.paths) == sorted(map(str, (folder / "train").glob("*/*")))
    assert list(dataset.test.images.paths) == sorted(map(str, (folder / "test").glob("*/*")))
    for split in (dataset.train, dataset.test):
        np.testing.assert_array_equal(split.labels, ["dog" in path for path in split.images.paths])
    monkeypatch.setattr(image_files, "MEMORY_LIMIT", image_files.MEMORY_LIMIT + 1)
    assert isinstance(streamed().train.images, np.ndarray)


def test_training_files_have_one_random_order_for_every_seed(streamed):
    first, second = streamed(seed=1).train, streamed(seed=2).train
    assert list(first.images.paths) == list(second.images.paths)
    assert 0 < first.labels[:9].sum() < 9


def test_validation_files_are_a_share_of_each_class(streamed):
    dataset = streamed(validation_split=1 / 3, seed=1)
    np.testing.assert_array_equal(np.bincount(dataset.validation.labels), [3, 3])
    np.testing.assert_array_equal(np.bincount(dataset.train.labels), [6, 6])
    assert not {*dataset.validation.images.paths} & {*dataset.train.images.paths}
    for split in (dataset.train, dataset.validation):
        np.testing.assert_array_equal(split.labels, ["dog" in path for path in split.images.paths])
    assert list(streamed(validation_split=1 / 3, seed=1).train.images.paths) == list(dataset.train.images.paths)
    assert list(streamed(validation_split=1 / 3, seed=2).train.images.paths) != list(dataset.train.images.paths)


def test_mean_and_std_are_those_of_the_first_files(streamed, monkeypatch):
    monkeypatch.setattr("tfspline.datasets.dataset._MOMENT_FILES", 5)
    dataset = streamed()
    pixels = dataset.train.images[:5].reshape(-1, 3)
    np.testing.assert_allclose(dataset.mean, pixels.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(dataset.std, pixels.std(axis=0), rtol=1e-5)


@pytest.mark.parametrize("name", ["crop_flip", "random_resized_crop"])  # after decoding, and while decoding
def test_batches_of_files_do_not_depend_on_the_first_epoch_or_the_shares(streamed, name):
    dataset = streamed()
    steps = dataset.steps_per_epoch(6)
    whole = take(dataset.train_batches(6, augment=name), 2 * steps)
    assert_same(whole[steps:], take(dataset.train_batches(6, epoch=1, augment=name), steps))
    assert not np.array_equal(whole[0][0], whole[steps][0])
    shares = [take(dataset.train_batches(6, augment=name, share=(number, 2)), 1)[0] for number in range(2)]
    assert_same(whole[:1], [[np.concatenate(parts) for parts in zip(*shares, strict=True)]])
    assert all(x.shape == (6, 16, 12, 3) and x.dtype == np.float32 and y.dtype == np.int32 for x, y in whole)


def test_evaluation_batches_contain_all_files_in_order(streamed):
    dataset = streamed()
    batches = take(dataset.evaluation_batches(4))
    assert [len(y) for _, y in batches] == [4, 2]
    np.testing.assert_array_equal(np.concatenate([y for _, y in batches]), [0, 0, 0, 1, 1, 1])
    x = np.concatenate([x for x, _ in batches])
    np.testing.assert_array_equal(x, dataset.normalize(dataset.test.images[:]))


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_channels_of_files_are_converted_as_in_memory(tmp_path, rng, monkeypatch, channels):
    levels = {"grey": 1, "rgb": 3, "rgba": 4}
    first = next(name for name, n in levels.items() if n == channels)
    write(tmp_path / "train" / "a" / "0.png", smooth(rng, 8, 8, channels))
    for name, n in levels.items():
        write(tmp_path / "train" / "a" / f"{name}.png", np.full((8, 8, n), 200, np.uint8))
    write(tmp_path / "train" / "b" / "16.png", np.full((8, 8, 3), 200 * 257, np.uint16))
    for class_name in "ab":
        write(tmp_path / "test" / class_name / "0.png", np.full((8, 8, channels), 9, np.uint8))
    memory = data.load("image_folder", data_dir=tmp_path)
    monkeypatch.setattr(image_files, "MEMORY_LIMIT", 0)
    stream = data.load("image_folder", data_dir=tmp_path)
    assert stream.input_shape == memory.input_shape == (8, 8, levels[first])
    names = [path.rsplit("/", 1)[1] for path in stream.train.images.paths]
    order = np.argsort([["0.png", "grey.png", "rgb.png", "rgba.png", "16.png"].index(name) for name in names])
    # All but the first have a single colour, so the window does not matter.
    np.testing.assert_array_equal(stream.train.images[order[1:]], memory.train.images[1:])


def as_written(path, *colour, mode="RGB", **options):
    image = Image.new("RGB", (16, 16), colour).convert(mode, palette=Image.Palette.ADAPTIVE)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)


@pytest.mark.parametrize("limit", [2**31, 0], ids=["memory", "files"])
def test_unusual_image_formats_are_decoded(tmp_path, monkeypatch, limit):
    monkeypatch.setattr(image_files, "MEMORY_LIMIT", limit)
    red, grey = (200, 100, 50), (120, 120, 120)
    folder = tmp_path / "train" / "a"
    as_written(folder / "0.png", *red)
    as_written(folder / "palette.png", *red, mode="P")
    as_written(folder / "alpha.png", *red, mode="RGBA")
    as_written(folder / "grey.png", *grey, mode="L")
    as_written(folder / "grey and alpha.png", *grey, mode="LA")
    as_written(folder / "white.png", 255, 255, 255, mode="1")
    Image.fromarray(np.full((16, 16), 120 * 257, np.uint16)).save(folder / "16 bit.PNG")
    as_written(folder / "cmyk.jpg", *red, mode="CMYK", quality=100)
    as_written(folder / "progressive.jpeg", *red, progressive=True, quality=100)
    as_written(folder / "a png.jpg", *red, format="PNG")
    as_written(folder / "grey.bmp", *grey, mode="L")
    as_written(folder / "alpha.bmp", *red, mode="RGBA")
    as_written(folder / "still.gif", *red)
    frames = [Image.new("RGB", (16, 16), (0, 0, 255))]
    as_written(folder / "animated.gif", *red, save_all=True, append_images=frames)
    turned = Image.Exif()
    turned[0x0112] = 6
    halves = np.repeat(np.array([[[200, 100, 50]], [[120, 120, 120]]], np.uint8), 8, axis=0).repeat(16, axis=1)
    Image.fromarray(halves).save(folder / "turned.jpg", exif=turned, quality=100)
    for ignored in ("Thumbs.db", ".DS_Store", "notes.txt"):
        (folder / ignored).write_bytes(b"no image")
    (tmp_path / "train" / ".hidden").mkdir()
    for part, name in (("train", "b"), ("test", "a"), ("test", "b")):
        as_written(tmp_path / part / name / "0.png", *red)
    images = data.load("image_folder", data_dir=tmp_path).train.images
    found = sorted(
        str(path) for path in folder.iterdir() if path.suffix.lower() in (".png", ".jpg", ".jpeg", ".bmp", ".gif")
    )
    paths = list(images.paths) if limit == 0 else [*found, str(folder.parent / "b" / "0.png")]
    assert sorted(paths) == [*found, str(folder.parent / "b" / "0.png")] and len(found) == 15
    for path, image in zip(paths, images[:], strict=True):
        name = path.rsplit("/", 1)[1]
        if name == "turned.jpg":
            np.testing.assert_allclose(image[[3, 12], 8], halves[[3, 12], 8], atol=8)  # the EXIF orientation is ignored
        else:
            expected = 255 if name == "white.png" else grey if "grey" in name or "16" in name else red
            np.testing.assert_allclose(image[3:13, 3:13].astype(int) - expected, 0, atol=5, err_msg=path)


@pytest.mark.parametrize("size", [(4,), (4, 0), (4.0, 4), (4, 4, 3)])
def test_bad_image_size_raises(image_dir, size):
    with pytest.raises(ValueError, match=r"image_size=\(height, width\) of positive integers. Received: "):
        data.load("image_folder", data_dir=image_dir, image_size=size)


def test_missing_data_dir_raises():
    with pytest.raises(ValueError, match="Expected data_dir, .* for 'image_folder'. Received: None"):
        data.load("image_folder")


@pytest.mark.parametrize("part", ["train", "test"])
def test_missing_train_or_test_folder_raises(image_dir, part):
    (image_dir / part).rename(image_dir / "elsewhere")
    with pytest.raises(FileNotFoundError, match=f"data_dir .* has no '{part}'"):
        data.load("image_folder", data_dir=image_dir)


@pytest.mark.parametrize("part", ["train", "test"])
def test_folder_without_images_raises(image_dir, part):
    for path in (image_dir / part).glob("*/*"):
        path.unlink()
    with pytest.raises(ValueError, match=f"No images found in directory {image_dir / part}"):
        data.load("image_folder", data_dir=image_dir)


def test_different_classes_in_train_and_test_raise(image_dir):
    (image_dir / "test" / "dog").rename(image_dir / "test" / "cow")
    with pytest.raises(ValueError, match=r"the same classes .* only one of them has \['cow', 'dog'\]"):
        data.load("image_folder", data_dir=image_dir)


def test_class_without_images_raises(image_dir):
    for path in (image_dir / "test" / "dog").iterdir():
        path.unlink()
    with pytest.raises(ValueError, match=rf"every class in {image_dir / 'test'}. Received: none in \['dog'\]"):
        data.load("image_folder", data_dir=image_dir)


def test_single_class_raises(image_dir):
    for part in ("train", "test"):
        (image_dir / part / "dog").rename(image_dir / f"{part}-dogs")
    with pytest.raises(ValueError, match=r"at least two classes in .*. Received: \['cat'\]"):
        data.load("image_folder", data_dir=image_dir)


@pytest.mark.parametrize(
    ("index", "damaged"),
    [
        (0, lambda content: b"no image"),
        (1, lambda content: b"no image"),
        (1, lambda content: content[: len(content) // 2]),
    ],
    ids=["first", "second", "truncated"],
)
def test_error_names_a_damaged_image(image_dir, index, damaged):
    path = image_dir / "train" / "cat" / f"{index}.png"
    path.write_bytes(damaged(path.read_bytes()))
    with pytest.raises(ValueError, match=f"Cannot decode .*'{path}'"):
        data.load("image_folder", data_dir=image_dir)


@pytest.mark.parametrize("limit", [2**31, 0], ids=["memory", "files"])
@pytest.mark.parametrize(
    ("mode", "name", "write_other"),
    [
        ("RGB", "1.jpg", lambda path: path.write_bytes(b"")),
        ("RGB", "1.gif", lambda path: path.write_bytes(b"GIF89a")),
        ("RGB", "1.bmp", lambda path: as_written(path, 9, 99, 9, mode="P")),
        ("L", "1.gif", lambda path: as_written(path, 9, 9, 9)),
        ("L", "1.bmp", lambda path: as_written(path, 9, 9, 9)),
        ("L", "1.jpg", lambda path: as_written(path, 9, 9, 9, mode="CMYK")),
        ("RGBA", "1.jpg", lambda path: as_written(path, 9, 9, 9)),
    ],
    ids=["empty", "truncated", "palette", "grey and gif", "grey and bmp", "grey and cmyk", "alpha and jpeg"],
)
def test_error_names_a_file_that_cannot_be_decoded(tmp_path, monkeypatch, limit, mode, name, write_other):
    monkeypatch.setattr(image_files, "MEMORY_LIMIT", limit)
    for part, class_name in itertools.product(("train", "test"), "ab"):
        as_written(tmp_path / part / class_name / "0.png", 9, 9, 9, mode=mode)
    path = tmp_path / "test" / "b" / name
    write_other(path)
    with pytest.raises(ValueError, match=f"Cannot decode .*'{path}'"), naming_files():
        data.load("image_folder", data_dir=tmp_path).test.images[:]


def test_files_are_not_opened_before_they_are_needed(folder, streamed):
    (folder / "train" / "cat" / "8.jpg").write_bytes(b"no image")
    assert len(streamed().train) == 18


def test_run_on_a_damaged_file_ends_with_an_error_that_names_it(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(image_files, "MEMORY_LIMIT", 0)
    path = folder / "train" / "dog" / "0.png"
    path.write_bytes(path.read_bytes()[:60])
    recipe = Recipe(network="mlp", width=1 / 8, dataset="image_folder", data_dir=str(folder), batch_size=4, ratio=0.5)
    with pytest.raises(ValueError, match=f"Cannot decode .*'{path}'"):
        run(recipe, tmp_path / "run", verbose=0, publish=False)


def test_run_on_files(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(image_files, "MEMORY_LIMIT", 0)
    recipe = Recipe(
        network="mlp",
        width=1 / 8,
        dataset="image_folder",
        data_dir=str(folder),
        image_size=(8, 8),
        augment="random_resized_crop",
        validation_split=1 / 3,
        epochs=2,
        search_epochs=1,
        batch_size=4,
        learning_rate=0.01,
        ratio=0.5,
    )
    summary = run(recipe, tmp_path / "run", verbose=0, publish=False)
    rows = [json.loads(line) for line in (tmp_path / "run" / "history.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows if row["phase"] == "retrain"] == [2]
    assert summary["masked_slim_difference"] < 1e-4
