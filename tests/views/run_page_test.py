"""The report of a run: numbers, plots and links of what is there; hostile text stays text."""

import re
import xml.etree.ElementTree as ElementTree

import pytest

from rain_jax.methods import recording
from rain_jax.runs import directory, judgements
from rain_jax.views import plots, run_page
from tests.helpers import browser, recordings
from tests.helpers.browser import HOSTILE, nodes_shown

EVERYTHING = " ".join(HOSTILE)
MANIFEST = {
  "config": {
    "seed": 0,
    "tasks": ["dialogue"],
    "methods": ["vanilla", "rain"],
    "judge": "demo_rules",
    "preference": "",
    "prompts": {"text": "", "path": "", "column": "", "suffixes": "", "limit": 0},
    "format": {"name": ""},
    "search": {"variant": ""},
  },
  "model": {"path": HOSTILE[0]},
  "versions": {"jax": "1", "device": "cpu"},
  "formats": {},
}


def result(number, method, **more):
  counters = {"response_tokens": 10, "model_calls": 20, "tokens_forwarded": 30 * number + 30}
  if method == "rain":
    counters |= {"iterations": 12 + number, "moves": 4, "rewinds": 2}
  return {
    "id": f"{HOSTILE[1]} {number}",
    "task": "dialogue",
    "method": method,
    "prompt": f"prompt {number} {EVERYTHING}",
    "response": EVERYTHING,
    "finish_reason": "eos",
    "verdict": 1.0,
    "judged": {"harmless": number % 2 == 0},
    "counters": counters,
    "seconds": 1.0,
  } | more


def recorded():
  nodes = [recording.Node(-1, 0, [], "", "running", 0)]
  nodes += [
    recording.Node(0, 1, [i], text, "running", 0, committed=1 if i == 0 else None)
    for i, text in enumerate(HOSTILE)
  ]
  frames = [
    recording.Frame(
      0,
      recording.SEARCH,
      [recording.Visit(1, 0.5, "", "running")],
      changed=[[0, 1.0, 1, 0.5, 0.0], [1, 1.0, 1, 0.5, 0.1], [2, 0.0, 0, 0.0, 0.1]],
    ),
    recording.Frame(0, recording.COMMIT, node=1, reason="trusted"),
  ]
  return recordings.made_recording(nodes, frames, prompt=EVERYTHING)


@pytest.fixture
def workdir(tmp_path):
  """A run with a rejected prompt and a recorded search."""
  out = directory.Run.open(str(tmp_path), MANIFEST)
  for number in range(4):
    for method in ("vanilla", "rain"):
      out.append(result(number, method))
  rejected = {
    "finish_reason": "rejected",
    "verdict": None,
    "error": f"no {HOSTILE[1]}",
    "response": "",
  }
  line = result(9, "rain", **rejected)
  del line["counters"], line["judged"]
  out.append(line)
  out.keep_recording("dialogue", "rain", "../" + HOSTILE[1], recorded().as_json())
  out.close()
  return tmp_path


def test_the_report_tells_what_was_measured(workdir):
  html = run_page.write(str(workdir)).read_text("utf-8")
  row = lambda method: re.search(rf"<tr><td>dialogue</td><td>{method}</td>(.*?)</tr>", html)[1]
  cells = lambda method: re.findall(r"<td>(.*?)</td>", row(method))
  assert "50.0%" in cells("rain") and "3.38" in cells("rain")  # harmless; iterations per move
  assert "7.50" in cells("vanilla")  # tokens forwarded per token
  drawn = [ElementTree.fromstring(s) for s in re.findall(r"<svg.*?</svg>", html, re.DOTALL)]
  titles = lambda svg: [e.text for e in svg.iter("title")]
  scatter, histogram, lines = drawn
  assert sorted(titles(scatter)) == ["rain: harmless: 7.5, 50", "vanilla: harmless: 7.5, 50"]
  assert sum(int(t.split(": ")[1]) for t in titles(histogram)) == 4
  assert "visited: 1, 0.5" in titles(lines) and "committed: 1, 0.5" in titles(lines)
  (link,) = re.findall(r'href="([^"]*)"', html)
  assert (workdir / link).is_file() and link.startswith("recordings/")
  assert "iterations" not in (workdir / link).name
  again = run_page.write(str(workdir)).read_text("utf-8")
  assert again == html


def test_what_judges_said_later_is_in_the_report(workdir):
  for line in directory.read_results(str(workdir)):
    if "counters" in line:
      key = {name: line[name] for name in ("task", "id", "method")}
      answers = {"answers": {"kind": line["method"] == "rain"}}
      judgements.append(str(workdir), [key | {"judge": "a<b>", "by": "x"} | answers])
  html = run_page.write(str(workdir)).read_text("utf-8")
  assert "a&lt;b&gt;: rain: kind 100.0% of 4" in html
  assert "rain: kind: 7.5, 100" in html and "vanilla: kind: 7.5, 0" in html


def test_a_run_that_has_just_begun_has_a_report_too(tmp_path):
  out = directory.Run.open(str(tmp_path), MANIFEST)
  out.close()
  html = run_page.write(str(tmp_path)).read_text("utf-8")
  assert "no response yet" in html and "--config.record" in html and "<svg" not in html


def test_no_run_and_broken_files_are_one_line(tmp_path, workdir):
  with pytest.raises(directory.RunError, match="no manifest.json"):
    run_page.write(str(tmp_path / "nowhere"))
  for text in ("{", "[]", '{"tree": {"nodes": []}}'):
    (workdir / "recordings" / "odd.json").write_text(text, "utf-8")
    with pytest.raises(directory.RunError, match="odd.json") as caught:
      run_page.write(str(workdir))
    assert "\n" not in str(caught.value)


def test_hostile_text_in_a_report_is_shown_and_never_run(workdir):
  path = run_page.write(str(workdir))
  driver = browser.open_browser()
  try:
    driver.get(path.as_uri())
    assert driver.execute_script(
      "return [window.hacked, document.images.length, document.scripts.length]"
    ) == [None, 0, 0]
    said = driver.execute_script(
      "return [...document.querySelectorAll('dd.said')].map(e => e.textContent)"
    )
    assert sum(HOSTILE[0] in text for text in said) == 8
    driver.execute_script("document.querySelector('li a').click()")
    assert driver.title == "Search tree" and len(nodes_shown(driver)) == 1 + len(HOSTILE)
    browser.no_errors(driver)
  finally:
    driver.quit()


def test_plots_place_values_where_they_belong():
  point = lambda x, y: plots.Point("<a>", "s", x, y)
  svg = ElementTree.fromstring(
    plots.scatter([point(1, 0), point(100, 50), point(10, 100)], "x", "y", (0, 100))
  )
  marks = [(float(c.get("cx")), float(c.get("cy"))) for c in svg.iter("circle")]
  (ten, one_hundred, one) = marks  # the highest first
  assert one[0] < ten[0] < one_hundred[0] and one[1] > one_hundred[1] > ten[1]
  assert abs((ten[0] - one[0]) - (one_hundred[0] - ten[0])) < 0.2  # a logarithmic axis
  for values in ([3.0], [3.0, 3.0], [0.1, 0.2, 7.5], list(range(100)), [-4.0, 1e6]):
    svg = ElementTree.fromstring(plots.histogram(values, "x", "y"))
    counts = [int(title.text.split(": ")[1]) for title in svg.iter("title")]
    assert sum(counts) == len(values)
    assert all(float(rect.get("height")) >= 0 for rect in svg.iter("rect"))
  svg = ElementTree.fromstring(
    plots.lines({"a": [(0, 1.0)], "b": [(0, 0.0), (4, -1.0)]}, "x", "y", (-1, 1))
  )
  assert [len(line.get("points").split()) for line in svg.iter("polyline")] == [1, 2]
