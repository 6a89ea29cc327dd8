"""The experiments behind the tables, as data: methods, scales, and the cells that they define."""

import dataclasses
import functools
import itertools
import pathlib
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from tfspline import register_criterion
from tfspline.pruning import criteria
from tfspline.recipe import Recipe
from tfspline.recipe.flags import read_flagfile

CONFIGS = pathlib.Path(__file__).parents[1] / "configs"
RHOS = (0, 0.01, 0.2, 1)  # `spline` itself uses 0.05
for rho in RHOS:
    register_criterion(f"spline_rho_{rho:g}", functools.partial(criteria.spline, rho=rho))

# The options in which each method differs from the recipe of its network and dataset. Methods rank units within their
# layer unless they set `scope`, so that all have the same widths at a ratio.
REFITTED = {"criterion": "spline_affine", "compensate": "refit"}
PLAIN = {"criterion": "spline", "compensate": "none"}  # the defaults
SLIMMING = {"criterion": "bn_scale", "gamma_l1": 1e-4}  # as in Liu et al. 2017 and EB Train
METHODS = {
    "dense": {"baseline": True},  # its run also gives `spline` at the lowest ratio
    "spline": {},
    "spline_data": {"criterion": "spline_data", "compensate": "refit"},
    "spline_affine": REFITTED,
    "spline_gradual": {"schedule": "early_bird"},
    "spline_3.5x": REFITTED | {"training_flops_reduction": 3.5},
    "spline_5x": REFITTED | {"training_flops_reduction": 5.0},
    "bn_scale": SLIMMING,
    "eb_train": SLIMMING | {"eb_metric": "mask", "eb_lookback": 4, "eb_threshold": 0.1},
    "l1": {"criterion": "l1"},
    "l2": {"criterion": "l2"},
    "fpgm": {"criterion": "fpgm"},
    "taylor": {"criterion": "taylor"},
    "random": {"criterion": "random"},
    "snip": {"criterion": "snip", "search_epochs": 0},
    "synflow": {"criterion": "synflow", "search_epochs": 0},
    # Prune by magnitude at the early bird, then train all epochs from the initial weights.
    "lottery": {"criterion": "l1", "retrain_from": "initial"},
    # Train a small network of the same widths from random weights.
    "scratch": {"criterion": "random", "search_epochs": 0, "retrain_from": "random"},
    # Prune single weights with tfmot only, from the epoch in which `spline` prunes, to as many parameters.
    "tfmot_magnitude": {"schedule": "early_bird", "keras": "tf_keras"},
}
ABLATION = {
    "dense": METHODS["dense"],
    "spline": METHODS["spline"],
    **{f"spline_rho_{rho:g}": {"criterion": f"spline_rho_{rho:g}"} for rho in RHOS},
    **{
        f"{criterion}_{way}": {"criterion": criterion, "compensate": way}
        for criterion in ("spline", "spline_data", "spline_affine", "l1")
        for way in ("none", "merge", "refit")
        if (criterion, way) != ("spline", "none")
    },
    "spline_global": {"scope": "global"},
    "spline_affine_refit_global": REFITTED | {"scope": "global"},
    **{f"threshold_{threshold:g}": {"eb_threshold": threshold} for threshold in (0.08, 0.12, 0.2, 0.3)},
    **{f"lookback_{lookback}": {"eb_lookback": lookback} for lookback in (1, 2, 3, 4)},
    "looks_inside_epochs": {"eb_every": 12},
}
GRIDS = {"methods": METHODS, "ablation": ABLATION}


@dataclasses.dataclass(frozen=True)
class Scale:
    """The size of the experiments.

    Attributes:
        recipes: (dataset, network) -> recipe; its budget is replaced by those of the methods.
        ratios: shares of the units to remove.
        seeds: seeds of each cell.
        methods: method -> options that depend on the scale.
    """

    recipes: Mapping[tuple[str, str], Recipe]
    ratios: tuple[float, ...] = (0.3, 0.5, 0.7)
    seeds: tuple[int, ...] = (0, 1, 2)
    methods: Mapping[str, Mapping] = dataclasses.field(default_factory=dict)


def cpu_scale(cifar_dir: str | None = None, imagenet_dir: str | None = None) -> Scale:
    """Return the scale for two cores: a part of the images, at half of their size."""
    del imagenet_dir
    return _shrunk(cifar_dir, (0.3, 0.5, 0.7), width=0.75, epochs=20)


def cpu_long_scale(cifar_dir: str | None = None, imagenet_dir: str | None = None, width: float = 1.0) -> Scale:
    """Return the scale with the same images, the full network and 60 epochs, enough to converge."""
    del imagenet_dir
    scale = _shrunk(cifar_dir, (0.7,), width=width, epochs=60)
    # According to the ablation, refitting brings nothing before such a long training.
    methods = {name: options | PLAIN for name, options in scale.methods.items()}
    return dataclasses.replace(scale, methods=methods)


def cpu_wide_scale(cifar_dir: str | None = None, imagenet_dir: str | None = None) -> Scale:
    """Return the long scale with twice the width: a network larger than its data require, like those of the paper."""
    return cpu_long_scale(cifar_dir, imagenet_dir, width=2.0)


def _shrunk(cifar_dir, ratios, **lengths):
    common = {
        "network": "vgg8",
        "keras": "tf_keras",  # required by tfmot
        "train_images": 4000,
        "batch_size": 64,
        "learning_rate": 0.05,
        "weight_decay": 5e-4,
        "eb_lookback": 1,  # for 20 or 60 epochs; the authors look back 3 epochs of 160
        "ratio": 0.5,
        **lengths,
    }
    recipes = [
        ("fashion_mnist", Recipe(dataset="fashion_mnist", image_size=(14, 14), augment="crop", **common)),
        ("cifar10", Recipe(**_cifar("cifar10", cifar_dir), image_size=(16, 16), augment="crop_flip", **common)),
    ]
    inside_epochs = {"search_epochs": 2, "eb_every": 12}
    return Scale(
        {(dataset, recipe.network): recipe for dataset, recipe in recipes},
        ratios,
        methods={"spline_3.5x": inside_epochs, "spline_5x": inside_epochs},
    )


def paper_scale(cifar_dir: str | None = None, imagenet_dir: str | None = None) -> Scale:
    """Return the scale of the paper's tables: the flagfiles in configs/, on all GPUs."""
    recipes = {}
    for network, dataset in itertools.product(("preresnet101", "vgg16"), ("cifar10", "cifar100")):
        folder = _cifar(dataset, cifar_dir if dataset == "cifar10" else None)
        recipes[dataset, network] = dataclasses.replace(configured(network, dataset), **folder, strategy="mirrored")
    for network in ("resnet18", "resnet50"):
        recipe = configured(network, "imagenet")
        recipes["imagenet", network] = dataclasses.replace(recipe, data_dir=imagenet_dir, strategy="mirrored")
    return Scale(recipes, methods={"spline_5x": {"search_epochs": 9, "eb_every": 100}})


SCALES = {"cpu": cpu_scale, "cpu_long": cpu_long_scale, "cpu_wide": cpu_wide_scale, "paper": paper_scale}
JOBS = {"cpu": 2, "cpu_long": 2, "cpu_wide": 2, "paper": 1}  # parallel processes


def _cifar(dataset, folder):
    # Without an image folder, keras.datasets downloads the data.
    return {"dataset": "image_folder", "data_dir": folder} if folder else {"dataset": dataset}


def configured(network: str, dataset: str) -> Recipe:
    """Read the recipe of a flagfile in configs/."""
    return Recipe.from_flags(read_flagfile(CONFIGS / f"{network}_{dataset}.cfg"))


class Key(NamedTuple):
    """The identity of a cell and its line; `ratio` is None for methods without one."""

    dataset: str
    network: str
    method: str
    ratio: float | None
    seed: int


@dataclasses.dataclass(frozen=True)
class Cell:
    """One training of the grid, and the cells it depends on.

    Attributes:
        key: identity of the cell.
        recipe: recipe of the training.
        search: cell whose dense search this one reuses; None if it runs its own.
        like: cell that determines when and to how many parameters tfmot prunes; None for other methods.
    """

    key: Key
    recipe: Recipe
    search: "Cell | None" = None
    like: "Cell | None" = None

    @property
    def keys(self) -> tuple[Key, ...]:
        """The keys of all its lines: the run of the dense network also gives a line of `spline`."""
        half = self.key._replace(method="spline", ratio=self.recipe.ratio)
        return (self.key, half) if self.key.method == "dense" else (self.key,)

    @property
    def name(self) -> str:
        """The name of its folder."""
        return "-".join(str(part) for part in self.key if part is not None)

    @property
    def needs(self) -> tuple["Cell", ...]:
        """The cells that must be done before this one."""
        return tuple(cell for cell in (self.search, self.like) if cell)

    @property
    def cost(self) -> float:
        """The approximate duration in dense trainings; MACs are proportional to the square of the width."""
        recipe, method = self.recipe, self.key.method
        whole = float(method in ("dense", "tfmot_magnitude"))
        searched = (recipe.search_limit + recipe.pruning_limit) / recipe.epochs
        if recipe.training_flops_reduction:
            return 1 / recipe.training_flops_reduction
        slim = (1 - recipe.ratio) ** 2 * (1 - searched * (recipe.retrain_from == "trained"))
        return max(whole, searched * (self.search is None)) + slim * (method != "tfmot_magnitude")


def cells(scale: Scale, methods: Mapping[str, Mapping], seeds: Iterable[int] = (), **options) -> list[Cell]:
    """List the cells of a grid, by seed, each after the cells that it needs.

    Args:
        scale: recipes and ratios.
        methods: name -> options of `Recipe`.
        seeds: seeds; by default, those of the scale.
        options: further options for all recipes.
    """
    found = {}
    for seed, ((dataset, network), base) in itertools.product(seeds or scale.seeds, scale.recipes.items()):
        base, searches = dataclasses.replace(base, seed=seed, **options), {}
        for method, chosen in methods.items():
            chosen = {"ratio": None, **chosen, **scale.methods.get(method, {})}
            without = method == "dense" or "training_flops_reduction" in chosen
            for ratio in [None] if without else scale.ratios:
                budget = {"ratio": scale.ratios[0] if method == "dense" else ratio}
                recipe = dataclasses.replace(base, **chosen | budget)
                like, search = None, None
                if method == "tfmot_magnitude":
                    like = found[dataset, network, "spline", ratio, seed]
                elif recipe.search_limit:
                    search = searches.get(fields := tuple(recipe.search_fields().items()))
                key = Key(dataset, network, method, ratio, seed)
                cell = found[key] = Cell(key, recipe, search, like)
                if method != "tfmot_magnitude" and recipe.search_limit:
                    searches.setdefault(fields, cell)
    return list(found.values())
