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


def emulate(driver, width=1280, scheme="light"):
  """Shows pages in a window that wide, in the `light` or the `dark` scheme."""
  size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
  driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
  feature = {"name": "prefers-color-scheme", "value": scheme}
  driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})


def overlaps(driver):
  """Pairs of texts of one picture whose boxes overlap, and texts outside of their picture."""
  return driver.execute_script("""
    const found = [];
    for (const svg of document.querySelectorAll('svg')) {
      const texts = [...svg.querySelectorAll('text')], edge = svg.getBoundingClientRect();
      const boxes = texts.map(text => text.getBoundingClientRect());
      boxes.forEach((a, i) => {
        if (a.left < edge.left - 1 || a.right > edge.right + 1 || a.top < edge.top - 1
            || a.bottom > edge.bottom + 1) found.push([texts[i].textContent, 'outside']);
        boxes.slice(i + 1).forEach((b, j) => {
          if (a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom)
            found.push([texts[i].textContent, texts[i + 1 + j].textContent]);
        });
      });
    }
    return found;""")


def contrasts(driver):
  """The lowest contrast (WCAG 2.2, 1.4.3) of text that is shown, with the text, and of marks."""
  return driver.execute_script("""
    const parts = colour => colour.match(/[\\d.]+/g).map(Number);
    const light = colour => parts(colour).slice(0, 3).map(v => v / 255).map(
      v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4
    ).reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
    const behind = element => {
      for (; element; element = element.parentElement) {
        const colour = getComputedStyle(element).backgroundColor;
        if ((parts(colour)[3] ?? 1) > 0) return colour;
      }
      return 'rgb(255, 255, 255)';
    };
    const ratio = (colour, element) => {
      const [a, b] = [light(colour), light(behind(element))];
      return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    };
    let text = [100, ''], mark = 100;
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    for (let node = walker.nextNode(); node; node = walker.nextNode()) {
      const element = node.parentElement;
      if (!node.data.trim() || element.tagName === 'title' || !element.getClientRects().length)
        continue;
      const style = getComputedStyle(element);
      const value = ratio(element.tagName === 'text' ? style.fill : style.color, element);
      if (value < text[0]) text = [value, node.data];
    }
    for (const element of document.querySelectorAll('svg [class^="c"], svg .line'))
      mark = Math.min(mark, ratio(getComputedStyle(element).stroke, element));
    return [text, mark];""")


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
