"""The site: built without a warning, whole, and shown without a fault by a browser, wide and narrow, light and dark."""

import functools
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections import defaultdict
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

import pytest

from torchdfa.experiments.results import find_results

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(find_spec("mkdocs") is None, reason="needs the extra docs")
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
VIEWS = {"wide and light": (1400, "light"), "narrow and dark": (390, "dark")}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


class Page(HTMLParser):
    """What a page links to, what it loads, and its anchors."""

    def __init__(self, path):
        super().__init__()
        self.links, self.loads, self.anchors = [], [], set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.anchors.update(filter(None, (given.get("id"), given.get("name"))))
        if tag == "a" and given.get("href"):
            self.links.append(given["href"])
        elif tag in ("img", "script", "source", "iframe") and given.get("src"):
            self.loads.append(given["src"])
        elif tag == "link" and given.get("rel") in ("stylesheet", "icon"):
            self.loads.append(given["href"])


@pytest.fixture(scope="module")
def pages(site):
    found = sorted(path for path in site.rglob("*.html") if path.stem != "404")
    return {path.relative_to(site).as_posix(): Page(path) for path in found}


def test_every_link_resolves(site, pages):
    broken = []
    for name, page in pages.items():
        for target in [*page.links, *page.loads]:
            url = urlsplit(urljoin(f"http://site/{name}", target))
            if url.netloc != "site":
                continue
            path = unquote(url.path).lstrip("/")
            found = site / path / "index.html" if not path or path.endswith("/") else site / path
            key = found.relative_to(site).as_posix()
            if not found.is_file():
                broken.append(f"{name}: {target}")
            elif url.fragment and key in pages and unquote(url.fragment) not in pages[key].anchors | {"__toc"}:
                broken.append(f"{name}: no anchor {target}")
    assert not broken
    assert sum(len(page.links) for page in pages.values()) > 1000


def test_nothing_comes_from_elsewhere(site, pages):
    assert not [(name, load) for name, page in pages.items() for load in page.loads if "//" in load]
    elsewhere = re.compile(r"(@import|url\()\s*[\"']?(https?:)?//")
    assert not [p for p in site.rglob("*.css") if elsewhere.search(p.read_text("utf-8"))]


def test_every_page_of_the_repository_is_there(site):
    for name in ("concepts", "how-to/track", "records/2026-11-22-hardware", "notebooks/train", "examples/stream"):
        assert (site / name / "index.html").is_file(), name
    assert (site / "records" / "2026-11-22-stream" / "stream.png").is_file()
    home = (site / "index.html").read_text("utf-8")
    assert 'src="records/table1-cifar10-small/table1.png"' in home


def test_docstrings_are_rendered(site):
    text = (site / "reference" / "index.html").read_text("utf-8")
    assert "gp" in text and "&gt;&gt;&gt; " in text  # sessions are blocks of code
    everything = "".join(p.read_text("utf-8") for p in (site / "reference").rglob("*.html"))
    assert ":func:" not in everything and ":class:" not in everything


PUBLIC = ("", ".data", ".experiments", ".feedback", ".hardware", ".online", ".ops", ".tracking", ".training")


@pytest.mark.parametrize("part", PUBLIC)
def test_everything_public_is_in_the_reference(site, part):
    pages = [p.read_text("utf-8") for p in (site / "reference").rglob("*.html")]
    anchors = {anchor for text in pages for anchor in re.findall(r'id="(torchdfa[^"]*)"', text)}
    module = importlib.import_module(f"torchdfa{part}")
    missing = []
    for name in module.__all__:
        value = getattr(module, name)
        places = {f"torchdfa.{name}", f"{module.__name__}.{name}"}
        if shadowed := not isinstance(value, type) and f"{module.__name__}.{name}" in sys.modules:
            places = {f"{module.__name__}.{name}.{name}"}  # a function that has its module's name
        if not places & anchors or (shadowed and f"{module.__name__}.{name}" in anchors):
            missing.append(name)
    assert not missing


def test_the_explorer_has_every_finished_run(site):
    text = (site / "explorer" / "index.html").read_text("utf-8")
    data = json.loads(re.search(r'id="runs">(.*?)</script>', text)[1])
    expected = defaultdict(dict)
    for results in find_results(ROOT / "records"):
        for run in results.read().values():
            r = run[-1]
            settings = (r.method, r.phase, r.lr, r.options, r.feedback_scale, r.weight_decay, r.head_lr, r.seed)
            expected[results.path.parent.name][settings] = [row.train_loss for row in run]
    assert expected
    shown = defaultdict(dict)
    for record in data["records"]:  # one for each data set and number of images in a folder
        found = shown[record["name"]]
        for line in record["lines"]:
            rates = [float(line[name]) for name in ("weight_decay", "head_lr")]
            settings = (
                line["method"],
                line["phase"],
                float(line["lr"]),
                line["options"],
                line["feedback_scale"],
                *rates,
            )
            for seed, values in line["seeds"].items():
                found[(*settings, int(seed))] = values["train_loss"]
    assert shown.keys() == expected.keys()
    for name, wanted in expected.items():
        assert shown[name].keys() == wanted.keys()
        for key, values in wanted.items():
            assert shown[name][key] == [v if v == v else None for v in values]


@pytest.fixture(scope="module")
def address(site):
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="needs the extra docs")
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(f"none of {', '.join(BROWSERS)} is installed")
    with playwright.sync_playwright() as started:
        # Containers give no sandbox, and little shared memory.
        shown = started.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield shown
        shown.close()


def opened(browser, view, faults):
    width, scheme = VIEWS[view]
    page = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme).new_page()
    page.set_default_timeout(120_000)
    page.on("console", lambda m: faults.append(f"{page.url}: {m.text}") if m.type == "error" else None)
    page.on("pageerror", lambda e: faults.append(f"{page.url}: {e}"))
    page.on("response", lambda r: faults.append(f"{page.url}: {r.url} {r.status}") if r.status >= 400 else None)
    return page


@pytest.mark.parametrize("view", VIEWS)
def test_every_page_is_shown_without_a_fault(browser, address, pages, view):
    faults = []
    page = opened(browser, view, faults)
    page.on("request", lambda r: None if r.url.startswith((address, "data:", "blob:")) else faults.append(r.url))
    for name in pages:
        page.goto(address + name.removesuffix("index.html"))
        found = page.evaluate(
            """() => ({
                over: document.documentElement.scrollWidth - document.documentElement.clientWidth,
                images: [...document.images].filter(i => !(i.complete && i.naturalWidth)).map(i => i.src),
                text: document.querySelector("article").innerText.length,
                dark: document.body.dataset.mdColorScheme === "slate",
            })"""
        )
        if found["over"] > 0:
            faults.append(f"{name}: {found['over']} pixels too wide")
        faults += [f"{name}: {image} is not shown" for image in found["images"]]
        if found["text"] < 100 or found["dark"] != (VIEWS[view][1] == "dark"):
            faults.append(f"{name}: {found}")
    assert not faults


@pytest.mark.parametrize("view", VIEWS)
def test_the_explorer_draws_what_is_chosen(browser, address, view):
    faults = []
    page = opened(browser, view, faults)
    page.goto(address + "explorer/")
    record = page.locator("select[name='data set and record']")
    assert "L" in page.locator(".explorer__plot path[fill=none]").first.get_attribute("d")  # a curve, not a point
    sizes = record.locator("option").all_inner_texts()
    assert all(("tokens" in t) == ("wikitext" in t or "shakespeare" in t) for t in sizes)
    record.select_option(label=next(t for t in record.locator("option").all_inner_texts() if "compare" in t))
    methods = page.locator(".explorer__methods input").count()
    curves = page.locator(".explorer__plot path[fill=none]")
    assert methods == curves.count() == page.locator(".explorer__table tbody tr").count() == 5
    assert page.locator(".explorer__plot path[opacity='0.16']").count() == 5  # bands of three seeds
    page.locator(".explorer__methods input").first.uncheck()
    assert curves.count() == 4
    assert "without=BP" in page.url
    page.locator("select[name=against]").select_option("lr")
    page.locator("select[name=metric]").select_option("val_top1")
    assert page.locator(".explorer__plot circle").count() > 10
    page.locator(".explorer__plot").hover()
    assert "rate" in page.locator(".explorer__readings").inner_text()
    again = opened(browser, view, faults)
    again.goto(page.url)
    # An address brings back the view.
    labels = ".explorer__plot text"
    assert again.locator(labels).all_text_contents() == page.locator(labels).all_text_contents()
    assert not again.locator(".explorer__methods input").first.is_checked()
    for option in record.locator("option").all():
        record.select_option(option.get_attribute("value"))
        assert curves.count() > 0
    assert not faults
