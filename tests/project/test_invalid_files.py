"""Invalid files, paths and export arguments are rejected with a message that names the problem."""

import pytest
from helpers.invalid import assert_rejected

import tfspline

CASES = {
    "a plan from a file of another format": (
        lambda g: tfspline.Plan.load(g.file, g.model),
        ValueError,
        "Expected a plan saved by tfspline in '.*file'. Received: a file that is damaged",
    ),
    "masks from a file of a plan": (
        lambda g: g.plan.save(g.file) or tfspline.Masks.load(g.file, g.model),
        ValueError,
        "Expected masks saved by tfspline in '.*file'. Received: .*format 'tfspline.plan.1'",
    ),
    "callback state from a file of codes": (
        lambda g: g.codes.save(g.file) or tfspline.EarlyBird().load(g.file),
        ValueError,
        "file saved by tfspline.*'.*file'",
    ),
    "a missing file": (lambda g: tfspline.Plan.load(g.folder / "plan.json", g.model), FileNotFoundError, "plan.json"),
    "a folder as file to load": (lambda g: tfspline.Codes.load(g.folder), IsADirectoryError, "Is a directory"),
    "a folder as file to save": (lambda g: g.codes.save(g.folder), IsADirectoryError, "Is a directory"),
    "a file in a missing folder": (lambda g: g.plan.save(g.folder / "no" / "plan.json"), FileNotFoundError, "no/plan"),
    "a folder below a file": (lambda g: tfspline.export(g.model, g.file / "net"), NotADirectoryError, "file/net"),
    "None as path": (lambda g: tfspline.export_litert(g.model, None), TypeError, "expected str.* not NoneType"),
    # Arguments of the export functions.
    "a plan of another model": (
        lambda g: tfspline.export(g.model, g.folder / "serving", plan=g.plan),
        ValueError,
        "The plan does not belong to model 'net': the model has 115 parameters, the plan leaves",
    ),
    "a path as plan of export": (
        lambda g: tfspline.export(g.slim, g.folder / "net", plan="plan.json"),
        TypeError,
        "Expected `plan` to be a .*Plan. Received: str",
    ),
    "a path as plan of partition_report": (
        lambda g: tfspline.partition_report(g.model, g.slim, g.x, plan="plan.json"),
        TypeError,
        "Expected `plan` to be a Plan. Received: str",
    ),
    "a number as class_names": (
        lambda g: tfspline.export(g.model, g.folder / "net", class_names=3),
        TypeError,
        "Expected `class_names` to be a list or tuple. Received: 3",
    ),
    "a string as preprocessing": (
        lambda g: tfspline.export(g.model, g.folder / "net", preprocessing="x / 255"),
        TypeError,
        "Expected preprocessing to be a function of a batch. Received: 'x / 255'",
    ),
    "a number of bits as quantize": (
        lambda g: tfspline.export_litert(g.model, g.folder / "net.tflite", 8),
        ValueError,
        r"Expected `quantize` among \(None, 'dynamic', 'int8'\). Received: 8",
    ),
}


@pytest.mark.parametrize(("call", "error", "message"), CASES.values(), ids=CASES)
def test_invalid_file_or_export_argument_is_rejected(given, call, error, message):
    assert_rejected(given, call, error, message)
