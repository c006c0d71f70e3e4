"""Every page of the built book, opened in headless Chromium as a reader without network would."""

import contextlib
import functools
import http.server
import os
import re
import shutil
import threading
from pathlib import Path
from urllib.parse import urlsplit

import pytest

ROOT = Path(__file__).resolve().parent.parent
CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--enable-unsafe-swiftshader",  # WebGL in software, for the clouds that can be turned
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
PENDING = """() => {
  const missing = [];
  const typeset = (e) => e.querySelector("mjx-container") !== null;
  for (const e of document.querySelectorAll("article .math"))
    if (!typeset(e)) missing.push("formula: " + e.textContent.trim().slice(0, 80));
  let figures = 0;
  for (const script of document.querySelectorAll("article script"))
    figures += (script.textContent.match(/Plotly\\.newPlot/g) || []).length;
  const drawn = document.querySelectorAll("article .js-plotly-plot .main-svg").length
    ? document.querySelectorAll("article .js-plotly-plot").length : 0;
  if (drawn < figures) missing.push(`plotly: ${drawn} of ${figures} figures`);
  for (const img of document.querySelectorAll("img"))
    if (!img.complete || img.naturalWidth === 0) missing.push("image: " + img.src.slice(0, 80));
  return missing;
}"""
FAULTS = """() => {
  const faults = [];
  for (const img of document.querySelectorAll("article img")) {
    const alt = (img.getAttribute("alt") || "").trim();
    // where an author gave none, Sphinx writes the file's own path
    if (alt === "" || /\\.(png|jpe?g|svg|gif)$/i.test(alt))
      faults.push("image without alternative text: " + img.src.slice(0, 80));
  }
  for (const figure of document.querySelectorAll("article .js-plotly-plot"))
    if (!(figure.getAttribute("aria-label") || "").trim())
      faults.push("plotly figure without aria-label");
  for (const error of document.querySelectorAll("article mjx-merror, article .merror"))
    faults.push("MathJax: " + (error.getAttribute("data-mjx-error") || error.textContent));
  const text = document.createTreeWalker(
    document.querySelector("article") || document.body, NodeFilter.SHOW_TEXT);
  while (text.nextNode()) {
    const node = text.currentNode;
    if (node.parentElement.closest("pre, code, script, style, mjx-container, .js-plotly-plot"))
      continue;
    const raw = node.textContent.match(
      /\\$\\$|\\\\\\(|\\\\\\[|\\\\(frac|mathcal|sigma|eta|sum)\\b/);
    if (raw) faults.push("untypeset formula: " + node.textContent.trim().slice(0, 80));
    if (/WebGL is not supported/.test(node.textContent)) faults.push(node.textContent.trim());
  }
  for (const link of document.querySelectorAll("article a.reference.internal[href='#']"))
    faults.push("reference to nowhere: " + link.textContent);
  return faults;
}"""


def book_folder() -> Path | None:
    named = os.environ.get("G2SF_BOOK")
    folders = [named] if named else ["_build/smoke/html", "_build/html"]
    found = (ROOT / folder for folder in folders)
    return next((folder for folder in found if (folder / "index.html").exists()), None)


BOOK = book_folder()
# index.html only sends the reader on to the first chapter
PAGES = sorted({path.name for path in BOOK.glob("*.html")} - {"index.html"}) if BOOK else []


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


@contextlib.contextmanager
def served(folder: Path):
    """Serve a folder on this machine and give its address."""
    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def address():
    if BOOK is None:
        pytest.skip("no book is built: run `make book` or `make test`")
    with served(BOOK) as found:
        yield found


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api")
    program = next(filter(None, map(shutil.which, CHROMIUM_NAMES)), None)
    if program is None:
        pytest.skip("no Chromium on this machine, and none could be installed")
    with sync_api.sync_playwright() as playwright:
        instance = playwright.chromium.launch(executable_path=program, args=FLAGS)
        yield instance
        instance.close()


def inspect(browser, address: str, name: str, timeout_s: float = 60.0) -> list[str]:
    """Open a page, wait until it is complete, and return all that is wrong with it."""
    wrong: list[str] = []
    home = urlsplit(address).netloc

    def is_foreign(url: str) -> bool:
        return urlsplit(url).scheme not in ("data", "blob") and urlsplit(url).netloc != home

    def check(message: str, is_wrong: bool = True) -> None:
        wrong.extend([message] * is_wrong)

    with contextlib.closing(browser.new_page()) as page:
        page.on("request", lambda r: check(f"request to another host: {r.url}", is_foreign(r.url)))
        page.on("requestfailed", lambda r: check(f"request failed: {r.url} ({r.failure})"))
        page.on("pageerror", lambda error: check(f"script error: {error}"))
        page.on("console", lambda said: check(f"console: {said.text}", said.type == "error"))
        page.on("response", lambda r: check(f"status {r.status}: {r.url}", r.status >= 400))
        page.goto(f"{address}/{name}", wait_until="load", timeout=timeout_s * 1000)
        try:
            page.wait_for_function(f"({PENDING})().length === 0", timeout=timeout_s * 1000)
        except Exception as error:
            if "Timeout" not in type(error).__name__:
                raise
            wrong += [f"not drawn in {timeout_s:.0f} s: {what}" for what in page.evaluate(PENDING)]
        wrong += page.evaluate(FAULTS)
    return wrong


def test_the_address_of_the_book_leads_to_its_first_chapter(address):
    text = (BOOK / "index.html").read_text()
    target = re.search(r'http-equiv="Refresh" content="0; url=([^"]+)"', text, re.IGNORECASE)
    assert target and target.group(1) in PAGES


@pytest.mark.parametrize("page_name", PAGES or ["none is built"])
def test_page_is_complete_and_asks_no_other_host(browser, address, page_name):
    assert inspect(browser, address, page_name) == []


def test_a_broken_page_is_found(browser, tmp_path):
    """The checks themselves: each fault planted in a page is reported."""
    (tmp_path / "page.html").write_text(
        """<!doctype html><html><head><link rel="icon" href="data:,"></head><body><article>
        <p>A formula left as it was: $$ x $$</p>
        <div class="math">\\[ y \\]</div>
        <img src="data:image/gif;base64,R0lGODlhAQABAAAAACw=" alt="">
        <script>const draw = () => Plotly.newPlot(); console.error("planted");</script>
        <script src="missing.js"></script><script src="http://192.0.2.1/x.js"></script>
        <script>throw new Error("thrown");</script>
        </article></body></html>"""
    )
    with served(tmp_path) as address:
        found = "\n".join(inspect(browser, address, "page.html", timeout_s=3))
    signs = ("untypeset formula", "formula: ", "without alternative text", "plotly: 0 of 1")
    for sign in (*signs, "console: planted", "status 404", "request to another host", "thrown"):
        assert sign in found, f"{sign!r} was not reported in:\n{found}"


BALLS = """() => [...document.querySelector(".js-plotly-plot").querySelectorAll("path.js-line")]
                  .map((line) => line.getAttribute("d"))"""


def test_the_playground_moves_without_a_kernel(browser, address):
    """The slider shows other balls, a switch another subset, a button another aggregation."""
    if "12_metric_playground.html" not in PAGES:
        pytest.skip("the book that is built has no chapter 12")
    wrong: list[str] = []
    with contextlib.closing(browser.new_page(viewport={"width": 1300, "height": 900})) as page:
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.goto(f"{address}/12_metric_playground.html", wait_until="load")
        page.wait_for_function(f"({PENDING})().length === 0", timeout=60_000)
        before = page.evaluate(BALLS)
        rail = page.locator(".slider-rail-touch-rect").first
        rail.scroll_into_view_if_needed()
        box = rail.bounding_box()
        page.mouse.click(box["x"] + 3, box["y"] + box["height"] / 2)  # its left end: epoch 0
        label = 'document.querySelector(".slider-label").textContent'
        page.wait_for_function(f"() => {label} === 'epoch 0'")
        page.wait_for_timeout(300)
        after = page.evaluate(BALLS)
        assert len(before) == len(after) and before != after
        figures = page.locator(".js-plotly-plot")
        switches, maps = figures.nth(1), figures.nth(2)
        caption = switches.locator(".scatterlayer .textpoint text:visible")
        names = {caption.first.text_content()}
        for number in (1, 0):  # the first loss off, and on again
            switches.locator(".updatemenu-button").nth(number).click()
            page.wait_for_timeout(300)
            names.add(caption.first.text_content())
        assert len(names) == 2
        pictures = set()
        for number in range(4):
            maps.locator(".updatemenu-button").nth(number).click()
            page.wait_for_timeout(300)
            pictures.add(maps.locator(".heatmaplayer").first.inner_html())
        # In a smoke book w hardly differs between directions: the nearest is the least there.
        assert len(pictures) >= 3
    assert wrong == []
