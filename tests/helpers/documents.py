"""The code blocks, links and commands of README.md and the pages in docs/."""

import pathlib
import re

ROOT = pathlib.Path(__file__).parents[2]
PAGES = sorted(
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "serving" / "README.md", *(ROOT / "docs").glob("*.md")]
)


def blocks(page: pathlib.Path, language: str = "python") -> list[str]:
    """The code blocks of a page in one language, in order."""
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


def run(page: pathlib.Path, code: list[str], names: dict, keras: str = "keras") -> dict:
    """Runs code blocks in order, with `import keras` replaced by an import of the given Keras version."""
    for block in code:
        source = re.sub(r"^import keras$", f"import {keras} as keras", block, flags=re.MULTILINE)
        exec(compile(source, str(page), "exec"), names)
    return names


def links(page: pathlib.Path) -> list[str]:
    """The targets of the relative links and pictures of a page."""
    targets = re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
    return [target for target in targets if not re.match(r"https?://", target)]


def anchors(page: pathlib.Path) -> set[str]:
    """The anchors of the headings of a page, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}
