import itertools
import json
import zlib

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tfspline import datasets as data
from tfspline.datasets import _readers, augment
from tfspline.datasets.image_files import ImageFiles, naming_files
from tfspline.recipe.recipe import Recipe
from tfspline.recipe.runner import run

SEED = tf.constant([1, 2], tf.int64)


def smooth(rng, height, width, channels=3):
    """An image that JPEG hardly changes."""
    coarse = rng.uniform(0, 255, (3, 4, channels)).astype(np.float32)
    return tf.image.resize(coarse, (height, width)).numpy().astype(np.uint8)


def write(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    encode = tf.io.encode_png if path.suffix == ".png" else tf.io.encode_jpeg
    tf.io.write_file(str(path), encode(image))
    return str(path)


def files(paths, *image_shape):
    return ImageFiles(np.array(paths, object), image_shape)


@pytest.fixture
def folder(tmp_path, rng):
    """Nine cats, JPEG, and nine dogs, PNG, for training, and three of each for testing, all of different sizes."""
    for part, n in (("train", 9), ("test", 3)):
        for class_name, kind in (("cat", "jpg"), ("dog", "png")):
            for index in range(n):
                write(tmp_path / part / class_name / f"{index}.{kind}", smooth(rng, 20 + index, 30 - index))
    return tmp_path


@pytest.fixture
def streamed(folder, monkeypatch):
    """Loads the folder with no memory to decode it into."""
    monkeypatch.setattr(_readers, "MEMORY_LIMIT", 24 * 16 * 12 * 3 - 1)
    return lambda **options: data.load("image_folder", data_dir=folder, image_size=(16, 12), **options)


def take(batches, n=-1):
    return [(x.numpy(), y.numpy()) for x, y in batches.take(n)]


def assert_same(some, others):
    assert len(some) == len(others)
    for (x, y), (other_x, other_y) in zip(some, others, strict=True):
        np.testing.assert_array_equal(x, other_x)
        np.testing.assert_array_equal(y, other_y)


# ---- the windows


@pytest.mark.parametrize(
    ("whole", "size", "rows", "columns"),
    [
        ((256, 256), (224, 224), (16, 240), (16, 240)),
        ((256, 400), (224, 224), (16, 240), (88, 312)),
        ((384, 256), (224, 224), (80, 304), (16, 240)),
        ((256, 256), (112, 224), (72, 184), (16, 240)),
    ],
)
def test_evaluation_sees_the_central_224_of_256_pixels(tmp_path, rng, whole, size, rows, columns):
    image = rng.integers(0, 256, (*whole, 3)).astype(np.uint8)
    seen = files([write(tmp_path / "0.png", image)], *size, 3)[0]
    np.testing.assert_array_equal(seen, image[slice(*rows), slice(*columns)])


def test_larger_images_are_resized(tmp_path, rng):
    small = smooth(rng, 32, 32)
    image = np.repeat(np.repeat(small, 4, axis=0), 4, axis=1)
    seen = files([write(tmp_path / "0.png", image)], 28, 28, 3)[0]
    np.testing.assert_array_equal(seen, small[2:30, 2:30])


def test_a_tiny_image_has_a_window():
    assert augment.window(tf.zeros([1, 9, 3]), tf.constant([0, 4, 1, 1])).shape == (1, 1, 3)


def test_a_line_of_pixels_is_an_image(tmp_path):
    seen = files([write(tmp_path / "0.png", np.full((1, 9, 3), 7, np.uint8))], 4, 4, 3)[0]
    np.testing.assert_array_equal(seen, np.full((4, 4, 3), 7))


@pytest.mark.parametrize("kind", ["jpg", "png"])
def test_random_windows_of_files_are_those_of_the_decoded_images(tmp_path, rng, kind):
    path = write(tmp_path / f"0.{kind}", smooth(rng, 60, 80))
    image = tf.io.decode_image(tf.io.read_file(path))
    seeds = tf.random.split(SEED, 20)
    read = files([path], 24, 24, 3).gather(tf.zeros(20, tf.int32), seeds).numpy()
    for seen, seed in zip(read, seeds, strict=True):
        expected = augment.resize(augment.window(image, augment.random_window([60, 80, 3], seed)), (24, 24))
        # Where a JPEG is cut, its decoder does not see the colours beyond.
        np.testing.assert_allclose(seen.astype(int), expected, atol=0 if kind == "png" else 6)


def test_random_windows_have_areas_and_ratios_of_inception():
    windows = np.array([augment.random_window([300, 400, 3], seed) for seed in tf.random.split(SEED, 400)])
    top, left, height, width = windows.T
    assert min(top.min(), left.min()) >= 0 and (top + height).max() <= 300 and (left + width).max() <= 400
    areas, ratios = height * width / (300 * 400), width / height
    assert 0.075 < areas.min() < 0.15 and 0.85 < areas.max() <= 1
    assert 0.74 < ratios.min() < 0.78 and 1.29 < ratios.max() < 1.35


def test_random_resized_crop_by_hand():
    """A window of a ramp is a ramp with a part of its range, and no two are alike."""
    ramp = np.broadcast_to(np.arange(0, 256, 4, np.uint8)[:, np.newaxis, np.newaxis], (64, 64, 1))
    crops = augment.random_resized_crop(tf.constant(np.stack([ramp] * 50)), SEED, 50, slice(None)).numpy().astype(int)
    assert (
        crops.shape == (50, 64, 64, 1) and (np.diff(crops, axis=1) >= 0).all() and (np.diff(crops, axis=2) == 0).all()
    )
    starts, ends = crops[:, 0, 0, 0], crops[:, -1, 0, 0]
    assert len({*zip(starts, ends, strict=True)}) > 45
    # A window with 8 % of the area is at least as high as the square root of 0.08 * 3/4.
    assert np.sqrt(0.08 * 3 / 4) * 252 - 8 < (ends - starts).min() < 120 and (ends - starts).max() > 200


# ---- as an array


def test_files_are_indexed_as_arrays_are(tmp_path):
    images = np.arange(5, dtype=np.uint8).repeat(48).reshape(5, 4, 4, 3)
    array = files([write(tmp_path / f"{index}.png", image) for index, image in enumerate(images)], 4, 4, 3)
    assert (array.shape, array.dtype, array.ndim, len(array)) == ((5, 4, 4, 3), np.uint8, 4, 5)
    for key in (-1, np.int64(3), slice(3), [4, 0, 0], images[:, 0, 0, 0] > 2, slice(0, 0)):
        got = array[key]
        np.testing.assert_array_equal(got, images[key])
        assert got.dtype == np.uint8
    np.testing.assert_array_equal(array.part(np.array([3, 1]))[:], images[[3, 1]])
    with pytest.raises(IndexError):
        array[5]


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_grey_alpha_and_16_bit_are_converted_as_in_memory(tmp_path, rng, monkeypatch, channels):
    levels = {"grey": 1, "rgb": 3, "rgba": 4}
    first = next(name for name, n in levels.items() if n == channels)
    write(tmp_path / "train" / "a" / "0.png", smooth(rng, 8, 8, channels))
    for name, n in levels.items():
        write(tmp_path / "train" / "a" / f"{name}.png", np.full((8, 8, n), 200, np.uint8))
    write(tmp_path / "train" / "b" / "16.png", np.full((8, 8, 3), 200 * 257, np.uint16))
    for class_name in "ab":
        write(tmp_path / "test" / class_name / "0.png", np.full((8, 8, channels), 9, np.uint8))
    memory = data.load("image_folder", data_dir=tmp_path)
    monkeypatch.setattr(_readers, "MEMORY_LIMIT", 0)
    stream = data.load("image_folder", data_dir=tmp_path)
    assert stream.input_shape == memory.input_shape == (8, 8, levels[first])
    names = [path.rsplit("/", 1)[1] for path in stream.train.images.paths]
    order = np.argsort([["0.png", "grey.png", "rgb.png", "rgba.png", "16.png"].index(name) for name in names])
    # All but the first are of one colour, so that the window makes no difference.
    np.testing.assert_array_equal(stream.train.images[order[1:]], memory.train.images[1:])


def as_written(path, *colour, mode="RGB", **options):
    image = Image.new("RGB", (16, 16), colour).convert(mode, palette=Image.Palette.ADAPTIVE)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)


@pytest.mark.parametrize("limit", [2**31, 0])
def test_odd_images_are_what_they_look_like(tmp_path, monkeypatch, limit):
    monkeypatch.setattr(_readers, "MEMORY_LIMIT", limit)
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
    for left_aside in ("Thumbs.db", ".DS_Store", "notes.txt"):
        (folder / left_aside).write_bytes(b"no image")
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
            np.testing.assert_allclose(image[[3, 12], 8], halves[[3, 12], 8], atol=8)  # not turned
        else:
            expected = 255 if name == "white.png" else grey if "grey" in name or "16" in name else red
            np.testing.assert_allclose(image[3:13, 3:13].astype(int) - expected, 0, atol=5, err_msg=path)


# ---- files that are no images


def bomb(path):
    """A small file that says that it is an image of 20,000 x 20,000."""
    as_written(path, 9, 9, 9)
    content = bytearray(path.read_bytes())
    content[16:24] = (20_000).to_bytes(4, "big") * 2
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    path.write_bytes(content)


@pytest.mark.parametrize("limit", [2**31, 0])
@pytest.mark.parametrize(
    ("first", "name", "write_other", "reason"),
    [
        ("RGB", "1.jpg", lambda path: path.write_bytes(b""), "cannot identify"),
        ("RGB", "1.gif", lambda path: path.write_bytes(b"GIF89a"), "cannot identify"),
        ("RGB", "1.png", lambda path: as_written(path, 9, 9, 9, format="WEBP"), "cannot identify"),
        ("RGB", "1.png", bomb, "400000000 pixels"),
        ("RGB", "1.bmp", lambda path: as_written(path, 9, 99, 9, mode="P"), "colours of a palette"),
        ("L", "1.gif", lambda path: as_written(path, 9, 9, 9), "a GIF of .* channels of the first image, 1"),
        ("L", "1.bmp", lambda path: as_written(path, 9, 9, 9), "a BMP of RGB"),
        ("L", "1.jpg", lambda path: as_written(path, 9, 9, 9, mode="CMYK"), "a JPEG of CMYK"),
        ("RGBA", "1.jpg", lambda path: as_written(path, 9, 9, 9), "a JPEG of RGB, .* first image, 4"),
    ],
    ids=["empty", "cut", "webp", "bomb", "palette", "grey and gif", "grey and bmp", "grey and cmyk", "alpha and jpeg"],
)
def test_header_of_no_image_is_refused_at_once(tmp_path, monkeypatch, limit, first, name, write_other, reason):
    monkeypatch.setattr(_readers, "MEMORY_LIMIT", limit)
    monkeypatch.setattr(tf.io, "decode_image", None)
    for part, class_name in itertools.product(("train", "test"), "ab"):
        as_written(tmp_path / part / class_name / "0.png", 9, 9, 9, mode=first)
    path = tmp_path / "test" / "b" / name
    write_other(path)
    with pytest.raises(ValueError, match=rf"Expected a JPEG, .* BMP image. Received: '{path}' \(.*{reason}"):
        data.load("image_folder", data_dir=tmp_path)


@pytest.mark.parametrize(
    ("index", "suffix", "damaged"),
    [
        (0, ".png", lambda content: b"no image"),
        (3, ".jpg", lambda content: b""),
        (3, ".png", lambda content: content[: len(content) // 2]),
        (2, ".jpg", lambda content: content[: len(content) // 2]),
    ],
    ids=["text", "empty", "cut png", "cut jpeg"],
)
def test_file_that_is_no_image_is_named(tmp_path, rng, index, suffix, damaged):
    paths = [tmp_path / f"{name}{suffix}" for name in "abcd"]
    array = files([write(path, smooth(rng, 40, 40)) for path in paths], 8, 8, 3)
    paths[index].write_bytes(damaged(paths[index].read_bytes()))
    named = rf"(?s)Expected a JPEG, PNG, GIF or BMP image. Received:\] \[{paths[index]}\]"
    with pytest.raises(tf.errors.InvalidArgumentError, match=named):
        array[:]


def test_file_that_is_no_image_is_named_by_batches(tmp_path, rng):
    paths = [tmp_path / f"{name}.png" for name in "abcd"]
    array = files([write(path, smooth(rng, 8, 8)) for path in paths], 8, 8, 3)
    paths[2].write_bytes(b"no image")
    named = rf"(?s)Received:\] \[{paths[2]}\]"
    split = data.Split(array, np.zeros(4, np.int32))
    dataset = data.Dataset("broken", ("a",), split, None, split)
    dataset.__dict__["_moments"] = np.zeros(3), np.ones(3)
    for batches in (
        dataset.evaluation_batches(1),
        dataset.train_batches(4, augment="random_resized_crop").take(1),
        dataset.train_batches(4).take(1),
    ):
        with pytest.raises(tf.errors.InvalidArgumentError, match=named):
            take(batches)
        with (
            pytest.raises(ValueError, match=f"^Expected .* Received: '{paths[2]}', which cannot be decoded$"),
            naming_files(),
        ):
            take(batches)


def test_file_that_is_gone_is_named(tmp_path):
    with pytest.raises(tf.errors.InvalidArgumentError, match=f"{tmp_path}/gone.png"):
        files([f"{tmp_path}/gone.png"], 8, 8, 3)[0]


# ---- as a dataset


def test_folders_beyond_the_limit_stay_files(streamed, folder, monkeypatch):
    dataset = streamed()
    assert isinstance(dataset.train.images, ImageFiles) and isinstance(dataset.test.images, ImageFiles)
    assert (dataset.class_names, dataset.input_shape, dataset.of_images) == (("cat", "dog"), (16, 12, 3), True)
    assert sorted(dataset.train.images.paths) == sorted(map(str, (folder / "train").glob("*/*")))
    assert list(dataset.test.images.paths) == sorted(map(str, (folder / "test").glob("*/*")))
    for split in (dataset.train, dataset.test):
        np.testing.assert_array_equal(split.labels, ["dog" in path for path in split.images.paths])
    monkeypatch.setattr(_readers, "MEMORY_LIMIT", _readers.MEMORY_LIMIT + 1)
    assert isinstance(streamed().train.images, np.ndarray)


def test_training_files_are_mixed_in_the_same_way_for_every_seed(streamed):
    first, second = streamed(seed=1).train, streamed(seed=2).train
    assert list(first.images.paths) == list(second.images.paths)
    assert 0 < first.labels[:9].sum() < 9


def test_validation_is_a_share_of_each_class(streamed):
    dataset = streamed(validation_split=1 / 3, seed=1)
    np.testing.assert_array_equal(np.bincount(dataset.validation.labels), [3, 3])
    np.testing.assert_array_equal(np.bincount(dataset.train.labels), [6, 6])
    assert not {*dataset.validation.images.paths} & {*dataset.train.images.paths}
    for split in (dataset.train, dataset.validation):
        np.testing.assert_array_equal(split.labels, ["dog" in path for path in split.images.paths])
    assert list(streamed(validation_split=1 / 3, seed=1).train.images.paths) == list(dataset.train.images.paths)
    assert list(streamed(validation_split=1 / 3, seed=2).train.images.paths) != list(dataset.train.images.paths)


def test_moments_are_those_of_the_first_files(streamed, monkeypatch):
    monkeypatch.setattr("tfspline.datasets.dataset._MOMENTS_OF", 5)
    dataset = streamed()
    pixels = dataset.train.images[:5].reshape(-1, 3)
    np.testing.assert_allclose(dataset.mean, pixels.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(dataset.std, pixels.std(axis=0), rtol=1e-5)


@pytest.mark.parametrize("name", ["crop_flip", "random_resized_crop"])  # of decoded images, and of the files
def test_batches_of_an_epoch_are_the_same_wherever_a_training_starts(streamed, name):
    dataset = streamed()
    steps = dataset.steps_per_epoch(5)
    whole = take(dataset.train_batches(5, augment=name), 3 * steps)
    assert_same(whole[2 * steps :], take(streamed().train_batches(5, epoch=2, augment=name), steps))
    assert not np.array_equal(whole[0][0], whole[steps][0])
    shares = [take(dataset.train_batches(5, augment=name, share=(number, 5)), 1)[0] for number in range(5)]
    assert_same(whole[:1], [[np.concatenate(parts) for parts in zip(*shares, strict=True)]])
    assert all(x.shape == (5, 16, 12, 3) and x.dtype == np.float32 and y.dtype == np.int32 for x, y in whole)


@pytest.mark.parametrize("name", ["crop_flip", "random_resized_crop"])
def test_batches_are_those_of_the_same_images_in_memory(tmp_path, rng, monkeypatch, name):
    images = np.stack([smooth(rng, 16, 24) for _ in range(8)])
    paths = [write(tmp_path / f"{index}.png", image) for index, image in enumerate(images)]
    monkeypatch.setattr("tfspline.datasets.image_files._CENTRAL", 1.0)
    datasets = [
        data.Dataset("some", tuple("abcdefgh"), split, None, split, seed=3)
        for split in (data.Split(each, np.arange(8, dtype=np.int32)) for each in (images, files(paths, 16, 24, 3)))
    ]
    memory, stream = (take(dataset.train_batches(3, epoch=1, augment=name), 4) for dataset in datasets)
    assert_same(memory, stream)
    assert_same(*(take(dataset.evaluation_batches(5)) for dataset in datasets))


def test_evaluation_batches_hold_all_files_in_their_order(streamed):
    dataset = streamed()
    batches = take(dataset.evaluation_batches(4))
    assert [len(y) for _, y in batches] == [4, 2]
    np.testing.assert_array_equal(np.concatenate([y for _, y in batches]), [0, 0, 0, 1, 1, 1])
    x = np.concatenate([x for x, _ in batches])
    np.testing.assert_array_equal(x, dataset.normalize(dataset.test.images[:]))


@pytest.mark.parametrize(
    ("limit", "name", "kept"), [(2**31, "dog/0.png", 60), (0, "dog/0.png", 60), (2**31, "cat/8.jpg", -40)]
)
def test_file_that_is_damaged_behind_its_header_ends_a_run_with_its_name(
    folder, tmp_path, monkeypatch, limit, name, kept
):
    monkeypatch.setattr(_readers, "MEMORY_LIMIT", limit)
    path = folder / "train" / name
    path.write_bytes(path.read_bytes()[:kept])
    recipe = Recipe(network="mlp", width=1 / 8, dataset="image_folder", data_dir=str(folder), batch_size=4, ratio=0.5)
    with pytest.raises(
        ValueError, match=f"^Expected a JPEG, PNG, GIF or BMP image. Received: '{path}', which cannot be"
    ):
        run(recipe, tmp_path / "run", verbose=0, publish=False)


def test_run_on_streamed_images(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(_readers, "MEMORY_LIMIT", 0)
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
