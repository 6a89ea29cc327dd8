"""The recipe as data: train dense until the partition has settled, prune, slim, train on."""

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from typing import Any

from tfspline import _keras
from tfspline import datasets as data
from tfspline.callbacks.early_bird import EarlyBird
from tfspline.callbacks.spline_pruning import SplinePruning
from tfspline.recipe.recipe_checks import BUDGETS, check

_PRUNINGS = 20  # how often a gradual schedule switches units off, about
# What is done with the network that the search leaves; all other fields say what that is.
_AFTER_SEARCH = {
    *("schedule", "pruning_epochs", "criterion", "scope", *BUDGETS, "min_units", "compensate", "retrain_from"),
    *("baseline", "weight_pruning", "evaluate"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a run does; each field is a flag of `train.py`, and `python train.py --help` says what it means.

    Exactly one of `ratio`, `max_flops` and `training_flops_reduction` says how much is pruned; gradual schedules need
    `ratio`.

    Raises:
        ValueError: a field outside its range, or fields that contradict each other.

    Example:
        >>> recipe = Recipe(network="mlp", dataset="digits", epochs=10, ratio=0.5)
        >>> recipe.search_limit
        4
    """

    network: str = "resnet20"
    width: float = 1.0
    dataset: str = "digits"
    data_dir: str | None = None
    image_size: tuple[int, int] | None = None
    validation_split: float = 0.0
    train_images: int | None = None
    evaluate: str = "test"
    augment: str = "none"
    keras: str = "keras"
    strategy: str = "none"
    seed: int = 0
    deterministic: bool = False
    epochs: int = 30
    batch_size: int = 128
    steps_per_epoch: int | None = None
    learning_rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 1e-4
    lr_schedule: str = "cosine"
    lr_drops: tuple[int, ...] = ()
    lr_drop_factor: float = 0.1
    gamma_l1: float = 0.0
    search_epochs: int | None = None
    eb_metric: str = "partition"
    eb_threshold: float | None = None
    eb_lookback: int | None = None
    eb_every: int | None = None
    schedule: str = "one_shot"
    pruning_epochs: int | None = None
    criterion: str = "spline"
    scope: str = "layer"
    ratio: float | None = None
    max_flops: float | None = None
    training_flops_reduction: float | None = None
    min_units: int = 1
    compensate: str = "none"
    retrain_from: str = "trained"
    baseline: bool = False
    weight_pruning: bool = False

    def __post_init__(self):
        check(self)

    @property
    def gradual(self) -> bool:
        """Whether units go a few at a time, while the dense network trains on."""
        return self.schedule != "one_shot"

    @property
    def pruning_limit(self) -> int:
        """How many epochs units are switched off in: `pruning_epochs`, or a fifth of `epochs`, rounded up."""
        if not self.gradual:
            return 0
        return math.ceil(self.epochs / 5) if self.pruning_epochs is None else self.pruning_epochs

    @property
    def search_limit(self) -> int:
        """How many epochs the search may take: `search_epochs`, or a fifth of `epochs`, rounded up.

        A fifth, since longer searches eat up what pruning saves; but not less than the early bird needs to
        compare, and never all epochs unless the retraining starts anew. The schedule "polynomial" searches for
        nothing.
        """
        if self.schedule == "polynomial":
            return 0
        if self.search_epochs is not None:
            return self.search_epochs
        return min(max(math.ceil(self.epochs / 5), self.early_bird().lookback + 1), self.longest_search)

    @property
    def longest_search(self) -> int:
        """How many epochs a search may take at most: as many as leave one to train on, unless that starts anew."""
        return self.epochs - self.pruning_limit - (not self.restarts)

    @property
    def restarts(self) -> bool:
        """Whether the slim network is trained from the first epoch on, with other weights than the trained ones."""
        return self.retrain_from != "trained"

    def retrained_from(self, pruned: float) -> float:
        """The epoch, or step, that the retraining goes on from where units went after `pruned` of them."""
        return 0 if self.restarts else pruned

    def slim_share(self, searched: float) -> float | None:
        """The share of the dense network's MACs that the slim one may have after `searched` dense epochs.

        It is `max_flops` where that is given, None where `ratio` is. Training FLOPs go with forward FLOPs times
        samples: with t epochs searched out of E, the search and the retraining together cost 1/R of the dense
        training where t + f (E - s) = E / R, f being the share and s the epoch that the retraining goes on from: t, or
        0 where it starts anew.

        Raises:
            ValueError: the search alone costs more than `training_flops_reduction` leaves.
        """
        if self.training_flops_reduction is None:
            return self.max_flops
        allowed = self.epochs / self.training_flops_reduction
        if searched >= allowed:
            raise ValueError(
                f"Expected a search shorter than epochs / training_flops_reduction = {self.epochs} / "
                f"{self.training_flops_reduction:g} = {allowed:.2f} epochs, which is all that they may cost. "
                f"Received: a search of up to {searched} epochs; set search_epochs or epochs."
            )
        return (allowed - searched) / (self.epochs - self.retrained_from(searched))

    def learning_rate_at(self, epoch: int) -> float:
        """The learning rate of an epoch, counted from 0; the same for dense and slim network."""
        if self.lr_schedule == "cosine":
            return self.learning_rate * 0.5 * (1 + math.cos(math.pi * epoch / self.epochs))
        return self.learning_rate * self.lr_drop_factor ** sum(epoch >= drop for drop in self.lr_drops)

    def load_dataset(self) -> data.Dataset:
        """The dataset of the recipe; ValueError, OSError as `tfspline.datasets.load` raises them."""
        size, images = self.image_size, self.train_images
        return data.load(self.dataset, self.data_dir, self.validation_split, self.seed, size, images)

    def optimizer(self) -> Any:
        """The SGD of the recipe, of its Keras, not built yet."""
        optimizer = _keras.keras_named(self.keras).optimizers.SGD(
            self.learning_rate,
            momentum=self.momentum,
            # Papers add the decay to the gradient, which momentum multiplies by 1 / (1 - momentum) in the
            # long run; Keras decays outside of the momentum.
            weight_decay=self.weight_decay / (1 - self.momentum) or None,
        )
        # Not saved with a model, and to be set before an optimizer is built.
        optimizer.exclude_from_weight_decay(var_names=["gamma", "beta", "bias"])
        return optimizer

    def early_bird(self, **options) -> EarlyBird:
        """The early-bird callback of the recipe; `options` are further arguments of it."""
        if self.ratio is not None:
            options["ratio"] = self.ratio
        return EarlyBird(self.eb_threshold, self.eb_lookback, self.eb_metric, every=self.eb_every, **options)

    def pruning(self, steps: int, **options) -> SplinePruning:
        """The gradual pruning of the recipe, with `steps` to an epoch; `options` are further arguments of it.

        The sparsity rises from 0 to `ratio` with tfmot's `PolynomialDecay`, steeply at first.
        """
        frequency = max(1, self.pruning_limit * steps // _PRUNINGS)
        last = self.pruning_limit * steps // frequency * frequency
        schedule = _keras.tfmot().sparsity.keras.PolynomialDecay(0.0, self.ratio, 0, last, frequency=frequency)
        return SplinePruning(schedule, self.criterion, self.scope, min_units=self.min_units, seed=self.seed, **options)

    def as_flags(self) -> dict[str, str]:
        """The fields as they are written on a command line; fields that are None are left out."""
        values = dataclasses.asdict(self)
        return {name: _as_flag(value) for name, value in values.items() if value is not None}

    @classmethod
    def from_flags(cls, flags: Mapping[str, str]) -> "Recipe":
        """The recipe that `as_flags` has written.

        Raises:
            ValueError: a flag that is no field, or whose text is no value of it; fields that no recipe may have.

        Example:
            >>> recipe = Recipe(network="mlp", ratio=0.5)
            >>> Recipe.from_flags(recipe.as_flags()) == recipe
            True
        """
        kinds = typing.get_type_hints(cls)
        if unknown := flags.keys() - kinds.keys():
            raise ValueError(f"Expected flags out of: {', '.join(kinds)}. Received: {', '.join(sorted(unknown))}")
        values = {}
        for name, text in flags.items():
            try:
                values[name] = _of_flag(text, kinds[name])
            except (KeyError, ValueError):
                raise ValueError(f"Expected --{name} to be {kinds[name]}. Received: {text!r}") from None
        return cls(**values)

    def search_fields(self) -> dict[str, Any]:
        """The fields that define the dense search, name to value, with what stands for those that were left out; the
        searches of recipes that agree in them are the same. Besides them `gradual`, where the bird is looked for inside
        epochs."""
        bird = self.early_bird()
        fields = {name: value for name, value in dataclasses.asdict(self).items() if name not in _AFTER_SEARCH}
        fields |= {"search_epochs": self.search_limit, "eb_threshold": bird.threshold, "eb_lookback": bird.lookback}
        if self.eb_metric == "mask":
            fields["ratio"] = bird.ratio
        if self.eb_every:
            fields["gradual"] = self.gradual  # then the search ends with an epoch, otherwise at the look
        return fields


def _as_flag(value):
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _of_flag(text, kind):
    kind = typing.get_args(kind)[0] if isinstance(kind, types.UnionType) else kind
    if typing.get_origin(kind) is tuple:
        return tuple(int(number) for number in text.split(",") if number)
    return {"true": True, "false": False}[text] if kind is bool else kind(text)
