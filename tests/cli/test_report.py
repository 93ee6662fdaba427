"""The page of a profile: as text, as HTML, and in a browser if there is one."""

import copy
import html
import json
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from seqrt.cli import main
from seqrt.cli.report import page as module
from seqrt.cli.report.page import page
from seqrt.cli.report.svg import PALETTE
from seqrt.runtime.profiling.measure import Measurement

Document = dict[str, Any]
Made = tuple[Document, list[Measurement]]

FIGURES = [
    *("speed", "tokens", "steps", "first-token"),
    *("timeline", "step", "stages", "operators"),
    *("acceptance", "cost", "roofline"),
]
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
SCRIPT = """<script>addEventListener("load", () => {
const box = (element) => element.getBoundingClientRect();
const figures = [...document.querySelectorAll("figure svg")].map((svg) => ({
  name: svg.parentElement.id, width: box(svg).width, height: box(svg).height,
  letters: Math.min(...[...svg.querySelectorAll("text")].map((text) => box(text).height)),
  outside: [...svg.querySelectorAll("text")].filter((text) => box(text).left < box(svg).left - 1
    || box(text).right > box(svg).right + 1 || box(text).top < box(svg).top - 1
    || box(text).bottom > box(svg).bottom + 1).map((text) => text.textContent) }));
const seen = { window: innerWidth, page: document.documentElement.scrollWidth, figures };
const out = parent.document.createElement("pre");
out.textContent = JSON.stringify(seen); parent.document.body.append(out);
});</script></body>"""


class Elements(HTMLParser):
    """All elements of a page with their attributes, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, {name: value or "" for name, value in attributes}))

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attributes)

    def handle_data(self, data: str) -> None:
        self.text += data

    @property
    def figures(self) -> list[str]:
        return [attributes["id"] for tag, attributes in self.found if tag == "figure"]


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    file.write_text("the quick fox\nthe lazy dog the lazy dog\nthe user asks\n")
    return file


@pytest.fixture(scope="module")
def written(bundle: Path, prompts: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Made, Path]:
    """What the command gave `page`, and the file that it wrote."""
    file, given = tmp_path_factory.mktemp("page") / "page.html", list[Made]()

    def kept(document: Document, found: list[Measurement]) -> str:
        given.append((document, found))
        return page(document, found)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "page", kept)
        arguments = ["profile", bundle, "--prompts", prompts, "--max-new-tokens", 24, "--ignore-eos", "--no-adaptive"]
        assert main([*map(str, arguments), "--pp", "16", "--tg", "4", "--html", str(file)]) == 0
    return given[0], file


@pytest.fixture
def made(written: tuple[Made, Path]) -> Made:
    """A copy, to be changed."""
    document, found = written[0]
    return copy.deepcopy(document), list(found)


@pytest.fixture
def text(written: tuple[Made, Path]) -> str:
    return written[1].read_text(encoding="utf-8")


def test_page_holds_tables_and_figures(text: str, made: Made) -> None:
    elements, (document, _) = Elements(text), made
    assert elements.figures == FIGURES
    drawn = [attributes for tag, attributes in elements.found if tag == "svg"]
    assert len(drawn) == len(FIGURES)
    assert all(attributes["role"] == "img" and attributes["aria-label"] for attributes in drawn)
    for row in document["rows"]:
        assert row["draft"] in elements.text
        assert f"{row['tokens_per_second']:.1f}" in elements.text
    for test in document["tests"]:
        assert f"{test['tokens_per_second']:.2f} ± {test['stddev']:.2f}" in elements.text
    assert document["settings"]["prompts_sha256"] in elements.text
    assert document["operators"][0]["op_type"] in elements.text
    assert "ended early" not in elements.text
    assert page(*made) == text  # nothing of it is random, or of this day


def test_page_loads_nothing_and_runs_nothing(text: str) -> None:
    elements = Elements(text)
    assert not {tag for tag, _ in elements.found} & {"script", "link", "iframe", "img", "object", "embed"}
    for _, attributes in elements.found:
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("src", "href", "xlink:href"):
                assert value.startswith("#")
            assert "://" not in value or name.startswith("xmlns")
    assert not re.findall(r"url\((?!#)|@import", text)


def test_ids_are_unique_and_references_lead_somewhere(text: str) -> None:
    elements = Elements(text)
    ids = Counter(attributes["id"] for _, attributes in elements.found if "id" in attributes)
    assert ids.most_common(1)[0][1] == 1
    assert set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', text))
    assert {a or b for a, b in re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', text)} <= ids.keys()


def test_colours_are_those_of_light_and_dark_mode(text: str) -> None:
    light, _, dark = text.partition("@media (prefers-color-scheme: dark)")
    for name, colours in PALETTE.items():
        assert f"--{name}: {colours[0]};" in light
        assert f"--{name}: {colours[1]};" in dark
    assert set(re.findall(r"var\(--(\w+)", text)) <= {*PALETTE, "ink", "alert"}
    assert "#fe00" not in text
    for svg in re.findall(r"<svg.*?</svg>", text, re.DOTALL):
        assert set(re.findall(r"(?<!, )#[0-9a-f]{6}\b", svg)) == set()  # but for what stands in for a variable
        assert "DejaVu" not in svg


def test_text_is_escaped(made: Made) -> None:
    evil = "<script>alert('$x$')</script>"
    document, found = made
    document["settings"]["bundle"] = document["settings"]["stop"] = document["rows"][1]["draft"] = evil
    document["stability"]["warnings"] = [evil]
    document["operators"][0]["module"] = evil
    found[1] = Measurement(evil, found[1].answers)
    text = page(document, found)
    assert "<script" not in text
    assert Elements(text).text.count(evil) > 5


def only_plain(document: Document, found: list[Measurement]) -> None:
    del document["rows"][1:], found[1:]


def interrupted(document: Document, found: list[Measurement]) -> None:
    del document["operators"]
    document["tests"] = []
    document["complete"] = False
    for row, one in zip(document["rows"], found, strict=True):
        del row["answers"][2:], one.answers[2:]


def unknown_bandwidth(document: Document, found: list[Measurement]) -> None:
    document["stability"]["copy_gb_per_second"] = {"median": None, "variation": None}
    for row in document["rows"]:
        row["bytes_per_step"] = row["gb_per_second"] = row["bandwidth_share"] = None


def one_prompt(document: Document, found: list[Measurement]) -> None:
    for row, one in zip(document["rows"], found, strict=True):
        row["speedup_interval"] = None
        one.answers = one.answers[:1]


@pytest.mark.parametrize(
    ("change", "without", "told"),
    [
        (only_plain, {"acceptance"}, "none"),
        (interrupted, {"operators"}, "it was ended early; figures cover 2 of 3 conversations"),
        (unknown_bandwidth, set(), "its bandwidth was not measured"),
        (one_prompt, set(), "none"),
    ],
)
def test_what_is_missing_is_left_out(
    change: Callable[[Document, list[Measurement]], None], without: set[str], told: str, made: Made
) -> None:
    document, found = made[0], [Measurement(one.draft, list(one.answers)) for one in made[1]]
    change(document, found)
    elements = Elements(page(document, found))
    assert elements.figures == [name for name in FIGURES if name not in without]
    assert told in elements.text


def test_answers_without_steps(seqrt: Callable[..., Any], bundle: Path, prompts: Path, tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    short = ("--draft", "lookup", "--max-new-tokens", 1, "--pp", 0, "--tg", 0)
    assert seqrt("profile", bundle, "--prompts", prompts, *short, "--html", file).code == 0
    assert Elements(file.read_text(encoding="utf-8")).figures == ["first-token"]


def test_warnings_stand_out(made: Made) -> None:
    document, found = made
    document["stability"]["warnings"] = ["the GPU's clock fell by 20%"]
    text = page(document, found)
    assert text.index("the GPU's clock fell".replace("'", "&#39;")) < text.index("<table>")


@pytest.mark.skipif(BROWSER is None, reason="needs chromium or google-chrome on PATH")
def test_page_in_a_browser(text: str, tmp_path: Path) -> None:
    """On a phone and on a desk, which are frames here: windows are not made as narrow as a phone."""
    inner = html.escape(text.replace("</body>", SCRIPT))
    frames = [f'<iframe width="{width}" height="900" srcdoc="{inner}"></iframe>' for width in (390, 1280)]
    file = tmp_path / "frames.html"
    file.write_text(f"<!DOCTYPE html><meta charset='utf-8'><body>{''.join(frames)}</body>", encoding="utf-8")
    command = [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'user'}"]
    command += ["--enable-logging=stderr", "--v=0", "--virtual-time-budget=2000", "--dump-dom", file.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "CONSOLE" not in done.stderr
    measured = [json.loads(html.unescape(each)) for each in re.findall(r"<pre>(.*?)</pre>", done.stdout)]
    assert sorted(seen["window"] for seen in measured) == [390, 1280]
    for seen in measured:
        assert seen["page"] <= seen["window"]
        assert [figure["name"] for figure in seen["figures"]] == FIGURES
        for figure in seen["figures"]:
            assert 250 < figure["width"] <= seen["window"]
            assert figure["height"] > 100
            assert figure["letters"] > 8
            assert figure["outside"] == []
