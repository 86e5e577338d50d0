"""The report's page in a real browser, on screens and phones, in light and dark."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from comparison_results import write_results

from lateprompt.experiments.report import read_results, render

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

# Runs in a frame of a given width, since a headless window is at least 500 pixels wide; says what it sees.
MEASURE = """
const frame = document.querySelector("iframe");
const look = () => {
  const page = frame.contentDocument, root = page.documentElement;
  page.querySelectorAll("details").forEach((d) => { d.open = true; });
  const boxes = [...page.querySelectorAll("svg")].map((s) => s.getBoundingClientRect())
    .filter((b) => b.width || b.height);
  const colour = () => frame.contentWindow.getComputedStyle(page.body).backgroundColor;
  const before = colour();
  const inner = (b, s) => [...s.querySelectorAll("text")].map((t) => t.getBoundingClientRect())
    .filter((t) => t.left < b.left - 1 || t.right > b.right + 1 || t.bottom > b.bottom + 1).length;
  const shown = [...page.querySelectorAll("svg")].filter((s) => s.getBoundingClientRect().width);
  const seen = {
    width: frame.contentWindow.innerWidth,
    content: Math.max(root.scrollWidth, page.body.scrollWidth),
    charts: boxes.length,
    smallest: Math.min(...boxes.map((b) => Math.min(b.width, b.height))),
    outside: shown.reduce((n, s) => n + inner(s.getBoundingClientRect(), s), 0),
    overlaps: shown.reduce((n, s) => {
      const texts = [...s.querySelectorAll(".label text")].map((t) => t.getBoundingClientRect());
      return n + texts.filter((a, i) => texts.slice(i + 1).some((b) =>
        a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 4 && b.top < a.bottom - 4)).length;
    }, 0),
    dark: frame.contentWindow.matchMedia("(prefers-color-scheme: dark)").matches,
    background: before,
    button: page.getElementById("theme").textContent,
  };
  page.getElementById("theme").click();
  seen.after = colour();
  document.title = JSON.stringify(seen);
};
frame.contentDocument.readyState === "complete" && frame.contentDocument.getElementById("theme")
  ? look() : frame.addEventListener("load", look);
"""


def browse(path: Path, profile: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run"]
    command += [f"--user-data-dir={profile}", "--disable-background-networking", *options, path.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("comparison")
    write_results(folder)
    return folder


@pytest.mark.skipif(BROWSER is None, reason="needs chromium, chromium-browser or google-chrome on the PATH")
@pytest.mark.parametrize("scheme", ["light", "dark"])
class TestBrowser:
    @pytest.fixture
    def flags(self, scheme) -> list[str]:
        return ["--blink-settings=preferredColorScheme=0"] if scheme == "dark" else []

    def test_loads_without_a_word_on_the_console(self, folder, tmp_path, flags):
        page = tmp_path / "report.html"
        page.write_text(render(read_results(folder)), encoding="utf-8")
        picture = tmp_path / "page.png"
        size = ["--window-size=1280,2000", f"--screenshot={picture}"]
        done = browse(page, tmp_path / "profile", "--enable-logging=stderr", *size, *flags)
        assert "CONSOLE" not in done.stderr
        assert picture.stat().st_size > 50_000

    @pytest.mark.parametrize("width", [390, 1280])
    def test_layout(self, folder, tmp_path, scheme, flags, width):
        page = render(read_results(folder))
        frame = (
            f'<iframe style="width:{width}px;height:900px;border:0;color-scheme:{scheme}" srcdoc="{html.escape(page)}">'
        )
        outer = tmp_path / "frame.html"
        outer.write_text(f"<body>{frame}</iframe><script>{MEASURE}</script>", encoding="utf-8")
        done = browse(outer, tmp_path / "profile", "--virtual-time-budget=5000", "--dump-dom", *flags)
        title = re.search(r"<title>(.*?)</title>", done.stdout, re.S)
        assert title, done.stderr[-2000:]
        seen = json.loads(html.unescape(title[1]))
        assert seen["width"] == width
        assert seen["content"] <= width
        assert seen["charts"] == 2 + 1 + 5 + 2 + 2 * 2 * 5  # speed, shots, shots by task, ranks, convergence
        assert seen["smallest"] > 100
        assert seen["outside"] == 0
        assert seen["overlaps"] == 0
        dark = scheme == "dark"
        assert seen["dark"] is dark
        assert seen["button"] == ("Light" if dark else "Dark")
        colours = ["rgb(20, 23, 27)", "rgb(255, 255, 255)"]
        assert [seen["background"], seen["after"]] == (colours if dark else colours[::-1])
