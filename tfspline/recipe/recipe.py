"""The settings of a run: train dense until the partition has settled, prune, train the slim network."""

import dataclasses
import math
import typing
from collections.abc import Mapping
from typing import Any

from tfspline import _keras, datasets
from tfspline.callbacks.early_bird import EarlyBird
from tfspline.callbacks.early_bird_tests import TESTS
from tfspline.callbacks.spline_pruning import SplinePruning
from tfspline.datasets.augment import AUGMENTATIONS
from tfspline.pruning.allocation import SCOPES
from tfspline.pruning.compensation import COMPENSATIONS
from tfspline.recipe.checks import check
from tfspline.recipe.flags import flag, from_text, to_text

_PRUNING_STEPS = 20  # a gradual schedule switches units off about this many times
_AFTER_SEARCH = ("Pruning", "Results")  # groups of fields that do not change the search


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """The settings of a run. Each field is also a flag of `train.py`; `python train.py --help` describes them.

    Exactly one of `ratio`, `max_flops` and `training_flops_reduction` is needed; gradual schedules need `ratio`.

    Raises:
        ValueError: a field has the wrong type or is out of its range, or fields contradict each other.

    Example:
        >>> recipe = Recipe(network="mlp", dataset="digits", epochs=10, ratio=0.5)
        >>> recipe.search_limit
        4
    """

    network: str = flag(
        "Network",
        "resnet20",
        "For small images: vgg8, vgg11, vgg13, vgg16, vgg19, resnet{6n+2} such as resnet20 or resnet56, preresnet{9n+2}"
        " such as preresnet101. With the stem for ImageNet: resnet18, resnet50, mobilenetv2. For any input: mlp.",
    )
    width: float = flag("Network", 1.0, "Factor on the number of channels of every hidden layer.")
    dataset: str = flag("Data", "digits", "digits, fashion_mnist, cifar10, cifar100, toy2d or image_folder.")
    data_dir: str | None = flag("Data", None, "Folder of the dataset; that of image_folder contains train/ and test/.")
    image_size: tuple[int, int] | None = flag("Data", None, "HEIGHT,WIDTH to which images are resized.")
    validation_split: float = flag("Data", 0.0, "Share of the training images that is held out for validation.")
    train_images: int | None = flag("Data", None, "Number of training images without the held-out ones. Default: all.")
    augment: str = flag("Data", "none", "Random shifts, crops and flips of training images.", (*AUGMENTATIONS,))
    keras: str = flag("Execution", "keras", "Train with Keras 3 (keras) or with tf_keras.", ("keras", "tf_keras"))
    strategy: str = flag(
        "Execution",
        "none",
        "mirrored trains on all GPUs, or on all logical CPUs if there is no GPU. multi_worker trains on the devices of"
        " all workers in the environment variable TF_CONFIG, with --keras=tf_keras. Devices share each batch.",
        ("none", "mirrored", "multi_worker"),
    )
    seed: int = flag("Execution", 0, "Seed of initial weights, data order and augmentation.")
    deterministic: bool = flag("Execution", False, "Make runs on this machine repeatable bit for bit. Slower on a GPU.")
    epochs: int = flag("Training", 30, "Number of epochs, including the search.")
    batch_size: int = flag("Training", 128, "Number of images per training step, over all devices.")
    steps_per_epoch: int | None = flag("Training", None, "Number of steps per epoch. Default: one pass over the data.")
    learning_rate: float = flag("Training", 0.1, "Learning rate of SGD in the first epoch.")
    momentum: float = flag("Training", 0.9, "Momentum of SGD.")
    weight_decay: float = flag("Training", 1e-4, "L2 weight decay of kernels, added to the gradient before momentum.")
    lr_schedule: str = flag("Training", "cosine", "cosine decays to 0; step uses --lr_drops.", ("cosine", "step"))
    lr_drops: tuple[int, ...] = flag("Training", (), "Epochs after which the learning rate drops, such as 80,120.")
    lr_drop_factor: float = flag("Training", 0.1, "Factor on the learning rate at each of --lr_drops.")
    gamma_l1: float = flag("Search", 0.0, "Weight of an L1 penalty on the gammas of BatchNormalization in the search.")
    search_epochs: int | None = flag(
        "Search",
        None,
        "Prune after this many epochs if no early bird was found earlier. 0 prunes the network at initialization, where"
        " bn_scale cannot rank units. Default: a fifth of --epochs, but at least --eb_lookback + 1.",
    )
    eb_metric: str = flag("Search", "partition", "What the early bird compares: codes or pruning masks.", (*TESTS,))
    eb_threshold: float | None = flag("Search", None, "Largest distance of an early bird. Default: by --eb_metric.")
    eb_lookback: int | None = flag("Search", None, "Number of epochs to compare with. Default: by --eb_metric.")
    eb_every: int | None = flag("Search", None, "Test for the early bird every this many steps, not once per epoch.")
    schedule: str = flag(
        "Pruning",
        "one_shot",
        "one_shot removes all units at the early bird. Gradual schedules switch units off a few at a time: polynomial"
        " from the first step, early_bird from the early bird.",
        ("one_shot", "polynomial", "early_bird"),
    )
    pruning_epochs: int | None = flag(
        "Pruning", None, "Number of epochs in which a gradual schedule reaches --ratio. Default: a fifth of --epochs."
    )
    criterion: str = flag(
        "Pruning",
        "spline",
        "How units are ranked: spline, spline_data, spline_affine, bn_scale, l1, l2, fpgm, taylor, snip, synflow or"
        " random.",
    )
    scope: str = flag("Pruning", "layer", "Rank units within each layer, or across all layers.", SCOPES)
    ratio: float | None = flag("Pruning", None, "Budget: share of the units that is removed.")
    max_flops: float | None = flag("Pruning", None, "Budget: share of the forward FLOPs that may stay.")
    training_flops_reduction: float | None = flag(
        "Pruning", None, "Budget: factor by which search and retraining together need fewer FLOPs than dense training."
    )
    min_units: int = flag("Pruning", 1, "Smallest number of units that a layer keeps.")
    compensate: str = flag(
        "Pruning", "none", "Adapt the remaining weights on training images before the retraining.", COMPENSATIONS
    )
    retrain_from: str = flag(
        "Pruning",
        "trained",
        "Weights with which the retraining starts: the trained ones, the initial ones of the kept units (a lottery"
        " ticket), or new random ones. With initial and random, the slim network is trained for all --epochs.",
        ("trained", "initial", "random"),
    )
    evaluate: str = flag("Results", "test", "Images on which final accuracies are measured.", ("test", "validation"))
    baseline: bool = flag("Results", False, "Also train the dense network to the end.")
    weight_pruning: bool = flag(
        "Results",
        False,
        "Also train a network to the end of which the smallest single weights were removed instead of units, with as"
        " many parameters as the slim network.",
    )

    def __post_init__(self):
        check(self)

    @property
    def gradual(self) -> bool:
        """Whether units are switched off a few at a time while the dense network is trained."""
        return self.schedule != "one_shot"

    @property
    def restarts(self) -> bool:
        """Whether the slim network is trained from the first epoch with other weights than the trained ones."""
        return self.retrain_from != "trained"

    @property
    def pruning_limit(self) -> int:
        """Number of epochs of gradual pruning: `pruning_epochs`, or a fifth of `epochs` rounded up; 0 for one-shot."""
        if not self.gradual:
            return 0
        return math.ceil(self.epochs / 5) if self.pruning_epochs is None else self.pruning_epochs

    @property
    def search_limit(self) -> int:
        """Largest number of epochs of the search: `search_epochs`, or a fifth of `epochs` rounded up.

        A fifth, because a longer search costs more than pruning saves; but at least what the early bird needs to
        compare, and at most `longest_search`. The schedule "polynomial" has no search.
        """
        if self.schedule == "polynomial":
            return 0
        if self.search_epochs is not None:
            return self.search_epochs
        return min(max(math.ceil(self.epochs / 5), self.early_bird().lookback + 1), self.longest_search)

    @property
    def longest_search(self) -> int:
        """Number of epochs that a search may have: one epoch must remain for the retraining, unless that restarts."""
        return self.epochs - self.pruning_limit - (not self.restarts)

    def retrained_from(self, pruned: float) -> float:
        """The epoch (or step) at which the retraining starts if the network was pruned at epoch (or step) `pruned`."""
        return 0 if self.restarts else pruned

    def slim_share(self, searched: float) -> float | None:
        """The share of the dense network's MACs that the slim network may have; None if `ratio` is set.

        Training FLOPs are proportional to forward FLOPs times samples. With t of E epochs `searched`, search and
        retraining together cost 1/R of the dense training if t + f (E - s) = E / R, where f is the share and s is the
        epoch at which the retraining starts. Raises a ValueError if the search alone costs more.
        """
        if self.training_flops_reduction is None:
            return self.max_flops
        allowed = self.epochs / self.training_flops_reduction
        if searched >= allowed:
            raise ValueError(
                f"training_flops_reduction={self.training_flops_reduction:g} allows the cost of {self.epochs} / "
                f"{self.training_flops_reduction:g} = {allowed:.2f} dense epochs, but the search may take up to "
                f"{searched} epochs. Reduce search_epochs or increase epochs."
            )
        return (allowed - searched) / (self.epochs - self.retrained_from(searched))

    def learning_rate_at(self, epoch: int) -> float:
        """The learning rate in an epoch, counted from 0; dense and slim networks use the same schedule."""
        if self.lr_schedule == "cosine":
            return self.learning_rate * 0.5 * (1 + math.cos(math.pi * epoch / self.epochs))
        return self.learning_rate * self.lr_drop_factor ** sum(epoch >= drop for drop in self.lr_drops)

    def load_dataset(self) -> datasets.Dataset:
        """Load the dataset. Raises what `tfspline.datasets.load` raises."""
        size, images = self.image_size, self.train_images
        return datasets.load(self.dataset, self.data_dir, self.validation_split, self.seed, size, images)

    def optimizer(self) -> Any:
        """A new SGD optimizer of the recipe's Keras, not built yet."""
        optimizer = _keras.keras_named(self.keras).optimizers.SGD(
            self.learning_rate,
            momentum=self.momentum,
            # Papers add the decay to the gradient, where momentum multiplies it by 1 / (1 - momentum) in the long
            # run. Keras applies the decay outside of the momentum.
            weight_decay=self.weight_decay / (1 - self.momentum) or None,
        )
        # Keras does not save this with a model, and it must be set before the optimizer is built.
        optimizer.exclude_from_weight_decay(var_names=["gamma", "beta", "bias"])
        return optimizer

    def early_bird(self, **options) -> EarlyBird:
        """A new early-bird callback; `options` are additional arguments of it."""
        if self.ratio is not None:
            options["ratio"] = self.ratio
        return EarlyBird(self.eb_threshold, self.eb_lookback, self.eb_metric, every=self.eb_every, **options)

    def pruning(self, steps: int, **options) -> SplinePruning:
        """A new callback for gradual pruning: sparsity rises from 0 to `ratio` with tfmot's `PolynomialDecay`.

        An epoch has `steps` steps; `options` are additional arguments of the callback.
        """
        frequency = max(1, self.pruning_limit * steps // _PRUNING_STEPS)
        last = self.pruning_limit * steps // frequency * frequency
        schedule = _keras.tfmot().sparsity.keras.PolynomialDecay(0.0, self.ratio, 0, last, frequency=frequency)
        return SplinePruning(schedule, self.criterion, self.scope, min_units=self.min_units, seed=self.seed, **options)

    def as_flags(self) -> dict[str, str]:
        """The fields as text on a command line, by name; fields that are None are left out."""
        values = dataclasses.asdict(self)
        return {name: to_text(value) for name, value in values.items() if value is not None}

    @classmethod
    def from_flags(cls, flags: Mapping[str, str]) -> "Recipe":
        """The recipe whose fields have these texts, as `as_flags` writes them. Raises a ValueError if it is invalid.

        Example:
            >>> recipe = Recipe(network="mlp", ratio=0.5)
            >>> Recipe.from_flags(recipe.as_flags()) == recipe
            True
        """
        kinds = typing.get_type_hints(cls)
        if unknown := flags.keys() - kinds.keys():
            raise ValueError(f"Unknown flags: {', '.join(sorted(unknown))}. Known flags: {', '.join(kinds)}.")
        return cls(**{name: from_text(name, text, kinds[name]) for name, text in flags.items()})

    def search_fields(self) -> dict[str, Any]:
        """The values that define the dense search, by name, with defaults resolved.

        Two recipes with equal search fields have the same search. With `eb_every`, this includes `gradual`, because
        only a one-shot search can end within an epoch.
        """
        bird = self.early_bird()
        fields = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.metadata["group"] not in _AFTER_SEARCH
        }
        fields |= {"search_epochs": self.search_limit, "eb_threshold": bird.threshold, "eb_lookback": bird.lookback}
        if not TESTS[self.eb_metric].uses_inputs:  # it compares masks with this share of removed units
            fields["ratio"] = bird.ratio
        if self.eb_every:
            fields["gradual"] = self.gradual
        return fields
