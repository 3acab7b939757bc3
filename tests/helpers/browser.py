"""Pages in a headless Chromium, which skips where there is none, and text that attacks them."""

import shutil

import pytest

HOSTILE = [
  "</script><script>window.hacked = 1</script>",
  "<img src=x onerror='window.hacked = 2'>",
  "<!--<script>",
  "]]>",
  "&lt;b&gt;&amp;",
  "\u2028\u2029 line",
  "\u202egnidaer",
  "\x00\x1b[31m\x7f",
  "`${window.hacked = 3}`",
  '"\'\\"',
  "{{7*7}}",
  "🙂 é \ud800",
]


def open_browser():
  """A selenium driver without network, for the caller to quit."""
  selenium = pytest.importorskip("selenium", reason="selenium is not installed")
  binary, driver = shutil.which("chromium"), shutil.which("chromedriver")
  if not binary or not driver:
    pytest.skip(
      "no chromium and chromedriver; install the Debian packages chromium, chromium-driver"
    )
  from selenium import webdriver

  options = webdriver.ChromeOptions()
  options.binary_location = binary
  for flag in (
    "headless=new",
    "no-sandbox",
    "disable-gpu",
    "disable-dev-shm-usage",
    "window-size=1400,900",
    "disable-background-networking",
  ):
    options.add_argument(f"--{flag}")
  options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
  return webdriver.Chrome(
    options=options, service=selenium.webdriver.chrome.service.Service(driver)
  )


def nodes_shown(chromium):
  """Data of every node that is drawn, by its number."""
  rows = chromium.execute_script(
    "return [...document.querySelectorAll('g.node')].map(g => ({...g.dataset,"
    " classes: g.getAttribute('class'), text: g.querySelector('title').textContent}))"
  )
  assert len({row["node"] for row in rows}) == len(rows)
  return {int(row["node"]): row for row in rows}


def no_errors(chromium):
  assert [line for line in chromium.get_log("browser") if line["level"] == "SEVERE"] == []
