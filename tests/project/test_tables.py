"""benchmarks/tables.py: cells and their dependencies, interruptions, and reports of results."""

import json
import math
import multiprocessing
import os
import pathlib
import sys
import threading
import time

import numpy as np
import pytest
from absl import app, flags
from absl.testing import flagsaver

from tfspline import datasets
from tfspline.recipe.recipe import Recipe

sys.path.append(str(pathlib.Path(__file__).parents[2] / "benchmarks"))
import grid  # noqa: E402
import grid_report  # noqa: E402
import magnitude  # noqa: E402
import tables  # noqa: E402
import workers  # noqa: E402

BASE = Recipe(network="mlp", width=0.25, epochs=2, learning_rate=0.05, ratio=0.5, eb_lookback=1, keras="tf_keras")
TINY = grid.Scale({("digits", "mlp"): BASE}, ratios=(0.5,), seeds=(0,))


def tiny(*methods, **options):
    return grid.cells(TINY, {method: grid.METHODS[method] for method in methods}, **options)


class TestGrid:
    # The networks of the paper take long to build.
    @pytest.mark.parametrize("scale", ["cpu", "cpu_long", pytest.param("paper", marks=pytest.mark.slow)])
    @pytest.mark.parametrize("of", grid.GRIDS)
    def test_every_recipe_is_valid(self, scale, of):
        scale, methods = grid.SCALES[scale](), grid.GRIDS[of]
        with_ratio = [name for name, options in methods.items() if "training_flops_reduction" not in options]
        cells = grid.cells(scale, methods)
        per_row = len(scale.ratios) * (len(with_ratio) - 1) + 1 + len(methods) - len(with_ratio)
        assert len({cell.key for cell in cells}) == len(cells) == per_row * len(scale.recipes) * len(scale.seeds)
        assert len({cell.name for cell in cells}) == len(cells)
        assert all(math.isfinite(cell.cost) and 0 < cell.cost < 3 for cell in cells)
        for i, cell in enumerate(cells):
            assert all(need in cells[:i] for need in cell.needs)
            if cell.search:
                assert cell.search.search is None
                assert cell.search.recipe.search_fields() == cell.recipe.search_fields()

    def test_equal_searches_run_once(self):
        cells = {cell.key[2:4]: cell for cell in grid.cells(grid.cpu_scale(), grid.METHODS, seeds=[0])}
        assert cells["spline", 0.7].search.key.method == cells["l1", 0.3].search.key.method == "dense"
        assert cells["bn_scale", 0.3].search is None  # the L1 on gamma changes the training
        assert cells["bn_scale", 0.7].search.key[2:4] == ("bn_scale", 0.3)
        assert cells["eb_train", 0.7].search is None  # masks depend on the ratio
        assert cells["snip", 0.5].search is cells["scratch", 0.5].search is None  # these methods have no search
        assert cells["tfmot_magnitude", 0.5].like is cells["spline", 0.5]

    def test_configs_are_valid_for_train(self):
        recipe = grid.configured("resnet18", "imagenet")
        assert (recipe.dataset, recipe.image_size) == ("image_folder", (224, 224))
        assert (recipe.epochs, recipe.lr_drops, recipe.learning_rate, recipe.weight_decay) == (90, (30, 60), 0.1, 1e-4)

    def test_rho_is_a_criterion(self):
        from tfspline.pruning import criteria

        assert criteria.named("spline_rho_0.01").keywords == {"rho": 0.01}

    def test_flags_select_cells_and_unknown_names_are_rejected(self):
        def chosen(*arguments):
            with flagsaver.flagsaver():
                return tables.chosen(flags.FLAGS(["tables.py", *arguments]) and flags.FLAGS)

        cells = chosen("--datasets=cifar10", "--methods=l1,dense", "--ratios=0.3,0.7", "--seeds=5", "--validation")
        assert [cell.key for cell in cells] == [
            ("cifar10", "vgg8", "dense", None, 5),
            ("cifar10", "vgg8", "l1", 0.3, 5),
            ("cifar10", "vgg8", "l1", 0.7, 5),
        ]
        assert {(cell.recipe.evaluate, cell.recipe.validation_split) for cell in cells} == {("validation", 0.1)}
        with pytest.raises(app.UsageError, match="--methods.*dense, spline, .*magic"):
            chosen("--methods=l1,magic")


def line_of(method, ratio, seed, accuracy, reduction, seconds, bird, **more):
    line = {"dataset": "digits", "network": "mlp", "method": method, "ratio": ratio, "seed": seed, "epochs": 20}
    line |= {"accuracy": accuracy, "training_flops_reduction": reduction, "seconds": seconds}
    options = {"width": "0.5", "criterion": "l1"} if method == "l1" else {"width": "0.5"}
    return line | {"early_bird_epoch": bird, "search_epochs": 4, "options": options} | more


LINES = [
    line_of("l1", 0.5, 0, 0.90, 2.0, 5.0, 3),
    line_of("l1", 0.5, 1, 0.92, 4.0, 5.0, None),
    line_of("dense", None, 0, 0.95, 1.0, 10.0, 3),
    line_of("dense", None, 1, 0.93, 1.0, 20.0, None),
    line_of("spline", 0.5, 0, 0.94, 2.0, 8.0, 2),
    line_of("spline", 0.5, 1, 0.94, 2.0, 8.0, 3),
    line_of("spline", 0.7, 1, 0.91, 5.0, 4.0, 3),
    line_of("snip", 0.7, 0, 0.5, 10.0, 4.0, None, search_epochs=0),
]


class TestReport:
    def test_table_computed_by_hand(self):
        text = grid_report.table(LINES, list(grid.METHODS))
        assert "### digits, mlp\n\nSeeds 0, 1; accuracy on test images; all with `--width=0.5`\n" in text
        rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in text.splitlines() if row.startswith("| ")]
        kinds = ("accuracy (%)", "training FLOPs", "time")
        assert [row for row in rows if row[0] != "---"] == [
            ["method", *kinds, "early bird, epoch"],
            ["`dense`", "94.00 ± 1.41", "1.00x", "1.00x", "3; 1 of 2 not found"],
            ["method", *(f"{kind}, {cut} % removed" for kind in kinds for cut in (50, 70)), "early bird, epoch"],
            # Times: 10 / 8 and 20 / 8 of a dense training of the same seed. The best of both seeds are bold.
            [
                *("`spline`", "**94.00 ± 0.00**", "91.00 (1 of 2 seeds)", "2.00x", "5.00x (1 of 2 seeds)"),
                *("1.88x", "5.00x (1 of 2 seeds)", "2 to 3"),
            ],
            ["`l1`", "91.00 ± 1.41", "–", "**3.00x**", "–", "**3.00x**", "–", "3; 1 of 2 not found"],
            [
                *("`snip`", "–", "50.00 (1 of 2 seeds)", "–", "10.00x (1 of 2 seeds)"),
                *("–", "2.50x (1 of 2 seeds)", "–"),
            ],
        ]

    def test_validation_split_is_named(self):
        lines = [{**line, "validation_accuracy": line["accuracy"]} for line in LINES]
        for line in lines:
            del line["accuracy"]
        assert "accuracy on validation images" in grid_report.table(lines)
        assert grid_report.draw(lines).axes[0].get_ylabel() == "validation accuracy (%)"

    def test_picture(self):
        figure = grid_report.draw(LINES, list(grid.METHODS))
        (axes,) = figure.axes
        (bars,) = axes.containers
        # Shares of the dense training; means of 1/2 and 1/4 for l1.
        np.testing.assert_allclose(bars.lines[0].get_xydata(), [[20, 91], [50, 94]])
        lines = {line.get_label(): line.get_xydata() for line in axes.lines}
        np.testing.assert_allclose(lines["l1"], [[37.5, 91]])
        assert [text.get_text() for text in figure.legends[0].get_texts()] == ["dense", "spline", "l1", "snip"]
        # With quartiles 91 and 94, values below 86.5 are listed as text instead of stretching the axis.
        assert [text.get_text() for text in axes.texts] == ["below: snip 50.0 (70 % removed)", "spline"]
        assert axes.get_ylim() == pytest.approx((91 - 0.12 * 3, 94 + 0.12 * 3))

    def test_names_do_not_overlap(self):
        lines = [line_of(f"spline_{i}", 0.5, 0, 0.9 + i / 1e5, 2.0, 5.0, 3) for i in range(3)]
        (axes,) = grid_report.draw([*lines, line_of("l1", 0.5, 0, 0.95, 2.0, 5.0, 3)]).axes
        bottom, top = axes.get_ylim()
        heights = {text.get_text(): (text.get_position()[1] - bottom) / (top - bottom) for text in axes.texts}
        assert sorted(heights, key=heights.get) == ["spline_0", "spline_1", "spline_2"]
        assert np.diff(sorted(heights.values())).min() > 0.05


DEATH = (
    "BrokenProcessPool: A process in the process pool was terminated abruptly while the future was running or pending."
)


class TestWorkers:
    def test_workers_survive_errors_and_deaths(self):
        texts = {"sum": "1 + 1", "error": "1 / 0", "death": "__import__('os')._exit(3)", "later": "2 + 2"}
        found, left = {}, list(texts)
        with workers.Workers(2, eval) as pool:
            while left or pool.busy:
                if left and pool.free:
                    pool.start(left[0], texts[left.pop(0)])
                else:
                    task, result, error = pool.wait()
                    found[task] = result, error
        assert found == {
            "sum": (2, None),
            "error": (None, "ZeroDivisionError: division by zero"),
            "death": (None, DEATH),
            "later": (4, None),
        }
        assert not multiprocessing.active_children()


class TestRunGrid:
    def test_grid_continues_after_a_killed_worker(self, tmp_path):
        cells = tiny("dense", "spline", "l1")
        path, failed = tmp_path / "results.jsonl", {}
        thread = threading.Thread(target=lambda: failed.update(tables.run_grid(cells, str(tmp_path))))
        thread.start()
        while thread.is_alive() and not (path.exists() and path.read_text().count("\n") == 2):
            time.sleep(0.01)
        for worker in multiprocessing.active_children():
            worker.kill()
        thread.join()
        assert failed == {"digits-mlp-l1-0.5-0": DEATH}
        before = path.read_text()

        assert tables.run_grid(cells, str(tmp_path)) == {}
        after = path.read_text()
        assert after.startswith(before)
        lines = {line["method"]: line for line in map(json.loads, after.splitlines())}
        assert sorted(lines) == ["dense", "l1", "spline"]
        dense, spline = lines["dense"], lines["spline"]
        assert dense["ratio"] is None and dense["training_flops_reduction"] == 1
        assert spline["training_flops_reduction"] == dense["training_flops"] / spline["training_flops"] > 1
        assert spline["macs"] < dense["macs"] and spline["options"]["eb_lookback"] == "1"
        assert all(0 < line["accuracy"] <= 1 and line["threads"] == os.cpu_count() for line in lines.values())
        # Only the search that other cells continue from is kept.
        assert sorted(os.listdir(tmp_path)) == ["digits-mlp-dense-0", "results.jsonl"]
        kept = {os.path.splitext(file)[0] for file in os.listdir(tmp_path / "digits-mlp-dense-0" / "checkpoints")}
        assert kept == {"search-0000011"}

        assert tables.run_grid(cells, str(tmp_path)) == {}
        assert path.read_text() == after
        with pytest.raises(ValueError, match="digits-mlp-dense-0.*options.*'batch_s"):
            tables.run_grid(tiny("dense", batch_size=64), str(tmp_path))
        tables.publish(str(tmp_path), list(grid.METHODS))
        assert (tmp_path / "accuracy_flops.png").exists() and "| `l1` |" in (tmp_path / "table.md").read_text()

    def test_missing_dependency_is_named(self, tmp_path):
        cells = [cell for cell in tiny("spline", "tfmot_magnitude", epochs=4) if cell.key.method == "tfmot_magnitude"]
        failed = tables.run_grid(cells, str(tmp_path))
        assert failed == {"digits-mlp-tfmot_magnitude-0.5-0": "needs digits-mlp-spline-0.5-0, which has no result"}


@pytest.mark.usefixtures("tfmot")
def test_tfmot_prunes_to_the_given_number_of_parameters():
    recipe = Recipe(network="mlp", width=0.25, epochs=4, learning_rate=0.05, ratio=0.5, keras="tf_keras",
                    schedule="early_bird", pruning_epochs=1, validation_split=0.2, evaluate="validation")  # fmt: skip
    found = magnitude.run(recipe, recipe.load_dataset(), params=1500, begin_epoch=1)
    assert found["params"] == pytest.approx(1500, abs=10)
    images = len(datasets.load("digits", validation_split=0.2).train) // 128 * 128
    macs = 64 * 32 + 32 * 32 + 32 * 10
    assert found["training_flops"] == 3 * 2 * macs * 4 * images
    assert 0.3 < found["accuracy"] <= 1 and found["macs"] <= macs
