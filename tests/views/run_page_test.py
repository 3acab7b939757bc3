"""The report of a run: numbers, plots and links of what is there; hostile text stays text."""

import re
import xml.etree.ElementTree as ElementTree

import pytest

from rain_jax.methods import recording
from rain_jax.runs import directory, judgements
from rain_jax.views import run_page
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
    "verdict": {"model": HOSTILE[0], "kind": "preference"},
  },
  "model": {"path": HOSTILE[0]},
  "versions": {"jax": "1", "device": "cpu"},
  "formats": {},
}


def result(number, method, **more):
  counters = {"response_tokens": 10, "model_calls": 20, "tokens_forwarded": 30 * number + 30}
  if method != "vanilla":
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


@pytest.fixture(scope="module")
def chromium():
  driver = browser.open_browser()
  yield driver
  driver.quit()


@pytest.fixture
def workdir(tmp_path):
  """A run with a rejected prompt and a recorded search."""
  out = directory.Run.open(str(tmp_path), MANIFEST)
  for number in range(4):
    for method in ("vanilla", "rain"):
      out.append(result(number, method))
  out.append(result(0, "segments"))
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


def columns(table):
  """Cells of a table by method and column."""
  table = ElementTree.fromstring(table)
  names = ["".join(head.itertext()) for head in table.iter("th") if head.get("scope") == "col"]
  rows = [["".join(cell.itertext()) for cell in row] for row in table.find("tbody")]
  assert {row[0].get("scope") for row in table.find("tbody")} == {"row"}
  assert all(len(row) == len(names) for row in rows)
  return {row[0]: dict(zip(names, row)) for row in rows}


def test_the_report_tells_what_was_measured(workdir):
  html = run_page.write(str(workdir)).read_text("utf-8")
  first, others = map(columns, re.findall(r"<table>.*?</table>", html))
  assert first["rain"]["harmless"] == "50.0% [15, 85], 2/4"  # Wilson: 0.5 +- 0.35
  assert list(first["vanilla"])[2:] == [
    "calls per token",
    "forwarded per token",
    "seconds",
    "repeats",
  ]
  assert first["vanilla"]["forwarded per token"] == "7.50"
  assert first["rain"]["repeats"] == "0.0% [0, 49], 0/4"
  assert others["rain"]["iterations per move"] == "3.38" and others["rain"]["rejected"] == "1"
  drawn = [ElementTree.fromstring(s) for s in re.findall(r"<svg.*?</svg>", html, re.DOTALL)]
  titles = lambda svg: [e.text for e in svg.iter("title")]
  rates, cost, repeats, histogram, lines = drawn
  assert titles(rates) == [
    *(f"{method}: 50.0% [15, 85], 2/4" for method in ("vanilla", "rain")),
    "segments: 100.0% [21, 100], 1/1",
  ]
  assert titles(cost)[:2] == ["vanilla: 7.5, 50", "rain: 7.5, 50"]
  assert titles(repeats)[0] == "vanilla: 0.0% [0, 49], 0/4"
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
  first = columns(re.search(r"<table>.*?</table>", html)[0])
  assert first["rain"]["kind"].startswith("100.0%") and first["vanilla"]["kind"].endswith("0/4")
  assert html.count("kind: yes</span>") == 4 and html.count("kind: no</span>") == 5


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


def test_hostile_text_in_a_report_is_shown_and_never_run(workdir, chromium):
  chromium.get(run_page.write(str(workdir)).as_uri())
  assert chromium.execute_script(
    "return [window.hacked, document.images.length, document.scripts.length]"
  ) == [None, 0, 0]
  said = chromium.execute_script(
    "return [...document.querySelectorAll('.answers .said')].map(e => e.textContent)"
  )
  assert sum(HOSTILE[0] in text for text in said) == 9
  chromium.execute_script("document.querySelector('li a').click()")
  assert chromium.title == "Search tree" and len(nodes_shown(chromium)) == 1 + len(HOSTILE)
  browser.no_errors(chromium)


def crowded(tmp_path):
  """Seven methods, all alike on all measures but one, on two tasks; long names and words."""
  out = directory.Run.open(str(tmp_path), MANIFEST)
  methods = ["vanilla", "rain", "best_of_n", "segments", "smooth_llm", "guard", "W" * 40]
  for task in ("dialogue", "questions"):
    for number in range(3):
      for method in methods[: 7 if task == "dialogue" else 4]:
        judged = {"harmless": True, "helpful": number > 0 or method != "rain"}
        judged["of_a_long_name_that_wraps_in_no_cell"] = True
        counters = {"response_tokens": 10, "model_calls": 20, "tokens_forwarded": 300}
        counters |= {"iterations": 40000 * number + 4, "moves": 4}
        line = result(number, method, task=task, judged=judged, counters=counters)
        response = "x" * 300 + "\nA lie, told.  a LIE, told. It ends."
        out.append(line | {"response": response})
  out.keep_recording("dialogue", "rain", "1", recorded().as_json())
  out.close()
  return run_page.write(str(tmp_path)).as_uri()


def test_nothing_overlaps_and_nothing_scrolls_where_methods_tie(tmp_path, chromium):
  address = crowded(tmp_path)
  for scheme in ("light", "dark"):
    browser.emulate(chromium, 1280, scheme)
    chromium.get(address)
    chromium.execute_script("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert browser.overlaps(chromium) == []
    assert len(chromium.find_elements("css selector", "svg")) == 2 * (3 * 2 + 1) + 2
    wide = chromium.execute_script(
      "return [...document.querySelectorAll('html, body *')].filter("
      "e => e.clientWidth && e.scrollWidth > e.clientWidth).map(e => e.tagName + e.className)"
    )
    assert wide == []
    sizes = chromium.execute_script(
      "return [...new Set([...document.querySelectorAll('svg text')].map("
      "t => t.getBoundingClientRect().height))]"
    )
    assert len(sizes) == 1  # as drawn, not as asked for
    (text, said), mark = browser.contrasts(chromium)
    assert text >= 4.5 and mark >= 3, (scheme, text, said, mark)
    paper = chromium.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (paper == "rgb(255, 255, 255)") == (scheme == "light")


def test_methods_stand_side_by_side_and_prompts_are_filtered(tmp_path, chromium):
  browser.emulate(chromium)
  chromium.get(crowded(tmp_path))
  in_a_row = chromium.execute_script(
    "return [...document.querySelectorAll('.answers')].map(grid => {"
    " const rows = {}; for (const e of grid.children) {"
    "  const y = e.getBoundingClientRect().top; rows[y] = (rows[y] || 0) + 1; }"
    " return Object.keys(rows).map(Number).sort((a, b) => a - b).map(y => rows[y]); })"
  )
  assert in_a_row == [[3, 3, 1]] * 3 + [[2, 2]] * 3
  shown = lambda: [e for e in chromium.find_elements("css selector", ".prompt") if e.is_displayed()]
  assert len(shown()) == 6
  chromium.find_element("id", "differ").click()
  assert len(shown()) == 2  # the first prompt of each task
  assert "(2 of 6)" in chromium.find_element("css selector", "label").text
  marked = chromium.find_elements("css selector", ".answers mark")
  assert {mark.get_property("textContent") for mark in marked} == {"a LIE, told."}


def test_methods_differ_by_their_own_verdicts_where_nobody_judged(tmp_path):
  out = directory.Run.open(str(tmp_path), MANIFEST)
  for number, verdict in ((0, 1.0), (1, -1.0)):
    for method, own in (("vanilla", 1.0), ("rain", verdict)):
      line = result(number, method, verdict=own)
      del line["judged"]
      out.append(line)
  out.close()
  html = run_page.write(str(tmp_path)).read_text("utf-8")
  assert "(1 of 2)" in html and "self verdict" in html
  assert "vanilla: 4.5, 1<" in html and "rain: 4.5, 0<" in html  # mean verdicts over cost
