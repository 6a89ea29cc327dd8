"""The pages in docs/: their code runs as written, their links and file names exist."""

import re
import shlex

import pytest
from helpers.documents import PAGES, ROOT, anchors, blocks, links, run

from tfspline.recipe import command_line

DOCS = ROOT / "docs"
COLUMNS = re.compile(r"<td>\n\n```python\n(.*?)```\n\n</td><td>\n\n```python\n(.*?)```\n\n</td>", re.DOTALL)
OWN_SETUP = {"README.md", "coming_from_tfmot.md", "custom_loops.md"}
STANDARD = [page for page in sorted(DOCS.glob("*.md")) if page.name not in OWN_SETUP and blocks(page)]


@pytest.mark.parametrize("page", STANDARD, ids=lambda page: page.stem)
def test_page_runs_after_the_setup_of_the_table_of_pages(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = run(DOCS / "README.md", blocks(DOCS / "README.md"), {})
    run(page, blocks(page), names)
    if page.stem == "deployment":
        assert (tmp_path / "serving" / "resnet" / "1" / "saved_model.pb").exists()


def pairs(rng, batches):
    """Inputs [batches, 8, 6] and targets [batches, 8, 3]."""
    x = rng.normal(size=(batches, 8, 6)).astype("float32")
    return x, x[..., :3]


def test_custom_loops(keras, rng, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = DOCS / "custom_loops.md"
    assert len(blocks(page)) == 4
    names = run(page, blocks(page), {"batches": list(zip(*pairs(rng, 4), strict=True))}, keras.__name__)
    kernel = names["model"].get_layer("hidden").get_weights()[0]
    assert (kernel == 0).all(axis=0).sum() == 8


def coming_from_tfmot():
    """The code of the left column, of the right column, and of the part below the tables."""
    page = DOCS / "coming_from_tfmot.md"
    text = page.read_text(encoding="utf-8")
    left, right = zip(*COLUMNS.findall(text), strict=True)
    both = re.findall(r"```python\n(.*?)```", COLUMNS.sub("", text), re.DOTALL)
    assert len(left) == 8 and len(both) == 2 and len(blocks(page)) == 18
    return page, left, right, both


def test_coming_from_tfmot_left(tfmot, rng):
    page, left, _, both = coming_from_tfmot()
    x, y = (array.reshape(128, -1) for array in pairs(rng, 16))
    names = run(page, left, {"x": x, "y": y}, "tf_keras")
    assert names["some"].layers[0].pruning_vars and not hasattr(names["some"].layers[1], "pruning_vars")
    assert (names["final"].get_layer("hidden").get_weights()[0] == 0).mean() == 0.5
    names = run(page, both, names, "tf_keras")
    assert 0 < names["report"].masks.off.sum() < 16


def test_coming_from_tfmot_right(keras, tfmot, rng):
    page, _, right, _ = coming_from_tfmot()
    x, y = (array.reshape(128, -1) for array in pairs(rng, 16))
    names = run(page, right, {"x": x, "y": y}, keras.__name__)
    assert names["final"].get_layer("hidden").units == 8
    assert names["history"].history["pruning_sparsity"][-1] == 0.5
    assert names["lite"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(page):
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_named_files_exist(page):
    text = page.read_text(encoding="utf-8")
    named = re.findall(r"\b(?:benchmarks|configs|tests|tfspline|serving|docs)/[\w/]+\.(?:py|cfg|md|yml)\b", text)
    packages = "|".join(path.name for path in (ROOT / "tfspline").iterdir() if (path / "__init__.py").exists())
    named += [f"tfspline/{path}" for path in re.findall(rf"(?<=[ `(])(?:{packages})/[\w/]+\.py\b", text)]
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_table_of_pages_is_complete():
    assert {page.name for page in DOCS.glob("*.md")} - {"README.md"} <= set(links(DOCS / "README.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_flags_of_benchmarks_exist(page):
    text = " ".join(page.read_text(encoding="utf-8").split())
    for script, flags in re.findall(r"python (benchmarks/\w+\.py)((?: --\w+(?:=(?:<[^>]*>|[^\s`]+))?)*)", text):
        source = (ROOT / script).read_text(encoding="utf-8")
        assert [flag for flag in re.findall(r"--(\w+)", flags) if f'"{flag}"' not in source] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_train_commands_have_valid_flags(page, monkeypatch):
    class Parsed(Exception):
        pass

    def run(*_):
        raise Parsed

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(command_line, "run", run)
    text = re.sub(r"<[^>]*>", "folder", "\n".join(blocks(page, "bash")))
    for flags in re.findall(r"python train\.py ([^\n&]+)", text):
        with pytest.raises(Parsed if "--help" not in flags else SystemExit):
            command_line.main(shlex.split(flags))
