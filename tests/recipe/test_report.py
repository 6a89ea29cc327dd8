"""The report of a run: content of the page, and its layout in a browser."""

import html
import json
import re
import shutil
import subprocess

import pytest
from matplotlib.figure import Figure

from tfspline.recipe import report

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SUMMARY = {
    "network": "mlp",
    "dataset": "<b>fast & loose</b>",
    "seed": 7,
    "epochs": 4,
    "schedule": "one_shot",
    "evaluate": "test",
    "steps_per_epoch": 8,
    "early_bird_step": None,
    "search_epochs": 3,
    "pruned_step": 18,
    "retrain_from": "trained",
    "masked_slim_difference": 1e-7,
    "dense": {"params": 1000, "macs": 3000, "training_flops": 6e9},
    "slim": {"params": 500, "macs": 1000, "training_flops": 3e9, "accuracy": 0.9, "seconds": 1.0},
    "layers": [
        {"layer": "conv_of_a_long_name/" * 5, "tied": ["<i>other</i>"], "units_before": 1234, "units_after": 617}
        | {"macs_before": 3000, "macs_after": 1000, "protected": None},
        {"layer": "head", "tied": [], "units_before": 2, "units_after": 2, "macs_before": 0, "macs_after": 0}
        | {"protected": "feeds the output " * 5},
    ],
    "versions": {"python": "3.12", "tfspline": None},
}
HISTORY = [
    {"phase": "search", "epoch": 1, "loss": 0.123456, "partition_distance": None},
    {"phase": "prune", "epoch": 1, "ratio": 0.5},
]


@pytest.fixture
def folder(tmp_path):
    """A folder of a run, with two of the pictures."""
    (tmp_path / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in HISTORY), encoding="utf-8")
    (tmp_path / "flags.cfg").write_text("--network=mlp\n--data_dir=" + "</pre>x" * 40 + "\n", encoding="utf-8")
    for name in ("training", "partition"):
        figure = Figure(figsize=(11, 3))
        figure.subplots()
        figure.savefig(tmp_path / f"{name}.png", dpi=150)
    return tmp_path


def cells(page, table):
    """The texts of the cells of a table of the page."""
    body = re.search(rf'<table id="{table}">(.*?)</table>', page, re.DOTALL)[1]
    return [
        [html.unescape(re.sub("<.*?>", "", cell)) for cell in re.findall(r"<t[dh].*?>(.*?)</t[dh]>", row, re.DOTALL)]
        for row in re.findall(r"<tr>(.*?)</tr>", body, re.DOTALL)
    ]


def test_page_shows_the_run(folder):
    report.write(folder, SUMMARY)
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert cells(page, "networks")[0] == ["", "dense", "slim", "dense : slim"]
    assert ["parameters", "1,000", "500", "2.00x"] in cells(page, "networks")
    assert ["test accuracy", "-", "90.00%", ""] in cells(page, "networks")
    assert cells(page, "layers")[2] == ["head", "2", "2", "0", "0", "feeds the output " * 5]
    assert cells(page, "epochs")[0] == ["phase", "epoch", "loss", "partition_distance", "ratio"]
    assert cells(page, "epochs")[1:] == [["search", "1", "0.1235", "", ""], ["prune", "1", "", "", "0.5"]]
    assert cells(page, "versions") == [["python", "3.12"], ["tfspline", "not installed"]]
    assert "early bird: not found." in page
    assert html.unescape(re.search('<pre id="flags">(.*?)</pre>', page, re.DOTALL)[1]) == (
        (folder / "flags.cfg").read_text(encoding="utf-8")
    )
    assert page.count("<img") == 2


def test_page_is_escaped_and_needs_no_other_file(folder):
    report.write(folder, SUMMARY)
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert not re.search("<b>|<i>|</pre>x|<script", page)
    sources = re.findall(r'(?:src|href)="(.{,30})', page) + re.findall(r"url\(.{,30}", page)
    assert len(sources) == 3 and all(source.startswith("data:") for source in sources)
    assert "default-src 'none'" in page


def test_table_names_every_network():
    weights = SUMMARY["slim"] | {"params": 501}
    lines = report.table(SUMMARY | {"weights_pruned": weights}).splitlines()
    assert lines[0].split() == ["dense", "slim", "weights", "pruned", "reduction"]
    assert lines[2].split() == ["parameters", "1,000", "500", "501", "2.00x"]


MEASURE = """<script>
const root = document.documentElement, images = [...document.images];
document.title = JSON.stringify({
  broken: images.filter(image => !image.complete || !image.naturalWidth).length,
  images: images.map(image => image.getBoundingClientRect().width),
  width: innerWidth, needed: root.scrollWidth, styled: getComputedStyle(document.querySelector("table")).borderCollapse,
});
</script>"""


@pytest.mark.skipif(not CHROMIUM, reason="needs chromium: apt-get install chromium")
@pytest.mark.parametrize("width", [500, 1280])  # headless Chromium's windows have at least 500 pixels
def test_page_in_a_browser(folder, tmp_path, width):
    report.write(folder, SUMMARY)
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "default-src 'none'" in page
    measured = page.replace("default-src 'none'", "default-src 'none'; script-src 'unsafe-inline'")
    (folder / "measured.html").write_text(measured.replace("</body>", f"{MEASURE}</body>"), encoding="utf-8")
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    command += [f"--window-size={width},900", "--dump-dom", (folder / "measured.html").as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    seen = json.loads(html.unescape(re.search("<title>(.*?)</title>", dom, re.DOTALL)[1]))
    assert seen["broken"] == 0 and seen["styled"] == "collapse"
    assert seen["width"] == width
    assert seen["needed"] <= width  # wide tables scroll within the page
    # 11 inches at 150 dots per inch: shown at 60 % of the dots or as wide as the page, but at 30 % at least.
    assert all(size == pytest.approx(min(990, 60 * 16, max(495, width - 2 * 16)), abs=1) for size in seen["images"])
