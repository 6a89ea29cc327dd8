"""Invalid recipes are rejected with a message that names the problem."""

import pytest

from tfspline.recipe import Recipe

CASES = {
    "a string as ratio": (
        lambda: Recipe(ratio="0.5"),
        ValueError,
        "Expected ratio to be a number. Received: '0.5'",
    ),
    "epochs that are not an integer": (
        lambda: Recipe(ratio=0.5, epochs=2.5),
        ValueError,
        "epochs to be an integer. Received: 2.5",
    ),
    "too many epochs": (
        lambda: Recipe(ratio=0.5, epochs=10**400),
        ValueError,
        "Expected epochs to be less than .* Received: 1000",
    ),
    "a list as image_size": (
        lambda: Recipe(ratio=0.5, image_size=[8, 8]),
        ValueError,
        r"Expected image_size to be integers .*Received: \[8, 8\]",
    ),
    "strings as lr_drops": (
        lambda: Recipe(ratio=0.5, lr_schedule="step", lr_drops=("80",)),
        ValueError,
        r"Expected lr_drops to be integers .*Received: \('80',\)",
    ),
    "a flag that is not an integer": (
        lambda: Recipe.from_flags({"ratio": "0.5", "epochs": "many"}),
        ValueError,
        "Expected --epochs to be an integer. Received: 'many'",
    ),
    "a flag that is not a boolean": (
        lambda: Recipe.from_flags({"ratio": "0.5", "baseline": "yes"}),
        ValueError,
        "Expected --baseline to be true or false. Received: 'yes'",
    ),
}


@pytest.mark.parametrize(("call", "error", "message"), CASES.values(), ids=CASES)
def test_invalid_recipe_is_rejected(call, error, message):
    with pytest.raises(error, match=message):
        call()
