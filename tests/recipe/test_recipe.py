"""The fields of a recipe: their validation, what follows from them, and their text on a command line."""

import pytest
from helpers.runs import SMALL

from tfspline.recipe import Recipe


class TestBudget:
    def test_share_by_hand(self):
        # 5 of 30 epochs searched; 30 / 3 = 10 dense epochs' worth allowed: 5 remain for 25 epochs.
        assert Recipe(epochs=30, training_flops_reduction=3.0).slim_share(5) == pytest.approx(0.2)

    def test_share_reaches_the_reduction(self):
        recipe = Recipe(epochs=160, training_flops_reduction=3.5)
        spent = 13 + recipe.slim_share(13) * (160 - 13)
        assert 160 / spent == pytest.approx(3.5)

    def test_share_with_restart_counts_all_epochs_of_the_retraining(self):
        # 5 of 30 epochs searched, 30 / 3 = 10 allowed: 5 remain for 30 epochs.
        recipe = Recipe(epochs=30, training_flops_reduction=3.0, retrain_from="initial")
        assert recipe.slim_share(5) == pytest.approx(1 / 6)

    def test_share_without_search_is_the_inverse_of_the_reduction(self):
        recipe = Recipe(epochs=30, training_flops_reduction=3.0, search_epochs=0)
        assert recipe.slim_share(0) == pytest.approx(1 / 3)

    def test_other_budgets(self):
        assert Recipe(max_flops=0.25).slim_share(5) == 0.25
        assert Recipe(ratio=0.7).slim_share(5) is None

    def test_search_that_exceeds_the_budget_is_refused(self):
        with pytest.raises(ValueError, match=r"training_flops_reduction=5 .* 30 / 5 = 6.00 .* up to 6 epochs"):
            Recipe(epochs=30, search_epochs=6, training_flops_reduction=5.0)

    @pytest.mark.parametrize(
        "budget", [{}, {"ratio": 0.5, "max_flops": 0.5}, {"ratio": 0.5, "training_flops_reduction": 3.0}]
    )
    def test_exactly_one_budget_is_needed(self, budget):
        with pytest.raises(ValueError, match="exactly one of ratio, max_flops, training_flops_reduction. Received"):
            Recipe(**budget)

    @pytest.mark.parametrize("budget", [{"max_flops": 1.0}, {"max_flops": 0.0}, {"training_flops_reduction": 1.0}])
    def test_budget_out_of_range_is_refused(self, budget):
        with pytest.raises(ValueError, match=f"Expected {next(iter(budget))} to be"):
            Recipe(**budget)


class TestSchedule:
    def test_cosine(self):
        recipe = Recipe(ratio=0.5, epochs=10, learning_rate=0.2)
        assert recipe.learning_rate_at(0) == pytest.approx(0.2)
        assert recipe.learning_rate_at(5) == pytest.approx(0.1)
        assert 0 < recipe.learning_rate_at(9) < 0.01

    def test_learning_rate_drops_after_that_many_epochs(self):
        recipe = Recipe(ratio=0.5, epochs=160, lr_schedule="step", lr_drops=(80, 120))
        rates = [recipe.learning_rate_at(epoch) for epoch in (0, 79, 80, 119, 120, 159)]
        assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])

    @pytest.mark.parametrize("drops", [(20, 10), (10, 10), (0,)])
    def test_drops_that_do_not_increase_are_refused(self, drops):
        with pytest.raises(ValueError, match="lr_drops to be increasing"):
            Recipe(ratio=0.5, lr_schedule="step", lr_drops=drops)

    def test_search_is_a_fifth_but_long_enough_to_compare(self):
        assert Recipe(ratio=0.5, epochs=31).search_limit == 7
        assert Recipe(ratio=0.5, epochs=10).search_limit == 4
        assert Recipe(ratio=0.5, epochs=2).search_limit == 1
        assert Recipe(ratio=0.5, epochs=10, search_epochs=2).search_limit == 2

    def test_gradual_schedule_by_hand(self):
        # A fifth of 31 epochs each. 7 x 9 steps: every third of them, because 63 // 20 = 3.
        recipe = Recipe(ratio=0.5, epochs=31, schedule="early_bird")
        assert (recipe.search_limit, recipe.pruning_limit) == (7, 7)
        schedule = recipe.pruning(steps=9).schedule
        assert [step for step in range(70) if schedule(step)[0]] == list(range(0, 64, 3))
        sparsities = [round(float(schedule(step)[1]), 4) for step in (0, 21, 63)]
        assert sparsities == [0.0, 0.3519, 0.5]  # 0.5 (1 - (2/3)^3)
        assert Recipe(ratio=0.5, epochs=31, schedule="polynomial").search_limit == 0
        assert Recipe(ratio=0.5, epochs=4, schedule="early_bird").search_limit == 2


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("network", "resnet21", "network"),
        ("width", 0.0, "width"),
        ("keras", "torch", "keras to be one of keras, tf_keras"),
        ("augment", "cutout", "augment to be one of none, crop, crop_flip"),
        ("lr_schedule", "linear", "lr_schedule to be one of cosine, step"),
        ("criterion", "magic", "criterion"),
        ("scope", "block", "scope to be one of layer, global"),
        ("compensate", "auto", "compensate to be one of none, merge, refit"),
        ("eb_metric", "loss", "eb_metric to be one of partition, mask"),
        ("eb_threshold", 1.5, "threshold"),
        ("eb_lookback", 0, "lookback"),
        ("eb_every", 0, "every"),
        ("epochs", 1, "epochs to be at least 2"),
        ("search_epochs", -1, "search_epochs to be from 0 to 29, so that epochs remain"),
        ("search_epochs", 30, "search_epochs to be from 0 to 29, so that epochs remain"),
        ("retrain_from", "scratch", "retrain_from to be one of trained, initial, random"),
        ("batch_size", 0, "batch_size to be at least 1"),
        ("learning_rate", 0.0, "learning_rate to be positive"),
        ("learning_rate", float("nan"), "learning_rate to be positive"),
        ("momentum", 1.0, "momentum to be in"),
        ("weight_decay", -0.1, "weight_decay to be 0 or more"),
        ("gamma_l1", -1e-4, "gamma_l1 to be 0 or more"),
        ("gamma_l1", float("inf"), "gamma_l1 to be 0 or more"),
        ("strategy", "parameter_server", "strategy to be one of none, mirrored"),
        ("lr_drop_factor", 1.0, "lr_drop_factor to be in"),
        ("lr_drops", (80,), "lr_drops needs lr_schedule='step'"),
        ("schedule", "cubic", "schedule to be one of one_shot, polynomial, early_bird"),
        ("pruning_epochs", 3, "pruning_epochs=3 needs a gradual schedule"),
        ("min_units", 0, "min_units to be at least 1"),
        ("ratio", 1.0, "ratio"),
        ("ratio", 0.0, "ratio"),
    ],
)
def test_invalid_field_is_refused(field, value, message):
    with pytest.raises(ValueError, match=message):
        Recipe(**{"ratio": 0.5, field: value})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"schedule": "polynomial", "pruning_epochs": 30}, "pruning_epochs to be from 1 to 29"),
        ({"schedule": "early_bird", "pruning_epochs": 29}, "pruning_epochs to be from 1 to 28"),
        ({"schedule": "early_bird", "search_epochs": 24}, "search_epochs to be from 1 to 23"),
        ({"schedule": "polynomial", "search_epochs": 3}, "schedule='polynomial' has no search.* search_epochs=3"),
        ({"schedule": "early_bird", "compensate": "refit"}, "schedule='early_bird' .* compensate=refit"),
        ({"schedule": "polynomial", "weight_pruning": True}, "schedule='polynomial' .* weight_pruning=True"),
        ({"schedule": "polynomial", "ratio": None, "max_flops": 0.5}, "takes a ratio .* max_flops=0.5"),
        ({"retrain_from": "initial", "compensate": "refit"}, "retrain_from='initial' .* compensate=refit"),
        ({"retrain_from": "initial", "weight_pruning": True}, "retrain_from='initial' .* weight_pruning=True"),
        ({"retrain_from": "initial", "search_epochs": 31}, "search_epochs to be from 0 to 30. Received: 31"),
        (
            {"retrain_from": "initial", "schedule": "early_bird", "search_epochs": 0},
            "search_epochs to be from 1 to 24. Received: 0",
        ),
        ({"network": "mlp", "gamma_l1": 0.1}, "gamma_l1 needs a network with BatchNormalization. .* network=mlp"),
        ({"search_epochs": 0, "gamma_l1": 0.1}, "gamma_l1 needs a search. .* search_epochs=0"),
        ({"baseline": True, "gamma_l1": 0.1}, "gamma_l1 .* baseline=True"),
        ({"network": "mlp", "criterion": "bn_scale"}, "criterion='bn_scale' needs .* BatchNormalization.* network=mlp"),
        ({"evaluate": "validation"}, "evaluate='validation' needs .* validation_split"),
        ({"strategy": "multi_worker"}, "strategy='multi_worker' needs keras='tf_keras'.* keras='keras'"),
        (
            {"strategy": "multi_worker", "keras": "tf_keras", "schedule": "polynomial", "criterion": "snip"},
            "criterion='snip' .*gradient",
        ),
    ],
)
def test_contradicting_fields_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Recipe(**{"ratio": 0.5, **fields})


def test_fields_that_define_the_search():
    recipe = Recipe(ratio=0.5, epochs=30)
    after = {"criterion": "l1", "scope": "global", "baseline": True, "weight_pruning": True, "compensate": "refit"}
    assert Recipe(ratio=0.7, epochs=30, min_units=2, **after).search_fields() == recipe.search_fields()
    same = {"search_epochs": 6, "eb_threshold": 0.16, "eb_lookback": 3}  # the defaults
    assert Recipe(max_flops=0.5, epochs=30, retrain_from="random", **same).search_fields() == recipe.search_fields()
    mask = [Recipe(ratio=ratio, eb_metric="mask").search_fields() for ratio in (0.5, 0.7)]
    assert [name for name in mask[0] if mask[0][name] != mask[1][name]] == ["ratio"]
    gradual = [Recipe(ratio=0.5, schedule=schedule).search_fields() for schedule in ("one_shot", "early_bird")]
    assert gradual[0] == gradual[1]
    # Only a one-shot search can end within an epoch.
    fields = {"ratio": 0.5, "eb_every": 2}
    gradual = [Recipe(**fields, schedule=schedule).search_fields() for schedule in ("one_shot", "early_bird")]
    assert gradual[0] != gradual[1]
    names = {"dataset": "toy2d", "seed": 1, "epochs": 31, "batch_size": 64, "steps_per_epoch": 3, "momentum": 0.5}
    for name, value in names.items():
        assert Recipe(**{"ratio": 0.5, "epochs": 30, name: value}).search_fields() != recipe.search_fields()


def test_recipe_from_its_flags():
    for fields in (SMALL, {"ratio": 0.5, "image_size": (8, 9), "dataset": "image_folder", "data_dir": "a=b"}):
        recipe = Recipe(**fields)
        assert Recipe.from_flags(recipe.as_flags()) == recipe
    drops = Recipe(ratio=0.5, lr_schedule="step", lr_drops=(80, 120))
    assert Recipe.from_flags(drops.as_flags()) == drops
    with pytest.raises(ValueError, match="Unknown flags: colour. Known flags: network"):
        Recipe.from_flags({"ratio": "0.5", "colour": "red"})
