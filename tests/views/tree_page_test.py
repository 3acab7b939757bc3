"""The page of a search: in a browser it shows what the arrays hold, and only as text."""

import re
import time

import jax
import jax.numpy as jnp
import pytest

from rain_jax.methods import recording
from rain_jax.views import page, tree_page
from tests.helpers import browser, recordings, scripted, serving
from tests.helpers.browser import HOSTILE, no_errors, nodes_shown
from tests.helpers.recordings import made_recording


@pytest.fixture(scope="module")
def chromium():
  driver = browser.open_browser()
  yield driver
  driver.quit()


@pytest.fixture(scope="module")
def recorded():
  """A search with many nodes, and its tree's arrays after every step."""
  params = jax.tree.map(jnp.asarray, scripted.make_tables())
  recorders, after, _ = recordings.record(params, dict(enumerate(serving.PROMPTS[:4])))
  slot = max(recorders, key=lambda slot: len(recorders[slot].nodes))
  return recorders[slot], after[slot]


def show(chromium, tmp_path, made):
  path = tmp_path / "tree.html"
  path.write_text(tree_page.render(made), "utf-8")
  chromium.get(path.as_uri())


def go_to(chromium, frame):
  chromium.execute_script(
    "const s = document.getElementById('slider'); s.value = arguments[0];"
    "s.dispatchEvent(new Event('input'))",
    frame,
  )


def click(chromium, name):
  chromium.execute_script("document.getElementById(arguments[0]).click()", name)


def test_the_page_opens_the_slider_moves_and_nodes_unfold(chromium, tmp_path, recorded):
  recorder, _ = recorded
  made = made_recording(recorder.nodes, recorder.frames)
  show(chromium, tmp_path, made)
  assert chromium.title == "Search tree"
  read = lambda name: chromium.find_element("id", name).text
  last = len(made.frames) - 1
  assert read("place") == f"{last + 1} / {last + 1}" and read("prompt") == "a prompt"
  seen = []
  for frame in (0, last // 2, last):
    go_to(chromium, frame)
    assert read("place") == f"{frame + 1} / {last + 1}"
    seen.append((read("happened"), len(nodes_shown(chromium))))
  assert seen[0][1] < seen[2][1] and len({happened for happened, _ in seen}) == 3
  assert read("final") == "".join(
    made.nodes[f.node].text for f in made.frames if f.node is not None
  )

  # With the keyboard, too.
  from selenium.webdriver.common.keys import Keys

  chromium.find_element("id", "slider").send_keys(Keys.ARROW_LEFT)
  assert read("place") == f"{last} / {last + 1}"

  click(chromium, "fold")
  folded = chromium.find_elements("css selector", "g.node[aria-expanded=false]")
  before = nodes_shown(chromium)
  number = int(folded[0].get_attribute("data-node"))
  unfold = (
    "document.querySelector(`[data-node=\"${arguments[0]}\"]`).dispatchEvent(new Event('click'))"
  )
  chromium.execute_script(unfold, number)
  after = nodes_shown(chromium)
  joined = set(after) - set(before)
  assert joined and {made.nodes[node].parent for node in joined} == {number}
  assert made.nodes[number].text in chromium.find_element("id", "node").text
  chromium.execute_script(unfold, number)
  assert set(nodes_shown(chromium)) == set(before)
  no_errors(chromium)


def test_what_is_drawn_is_what_the_arrays_hold(chromium, tmp_path, recorded):
  recorder, after = recorded
  made = made_recording(recorder.nodes, recorder.frames)
  show(chromium, tmp_path, made)
  click(chromium, "unfold")
  click(chromium, "discarded")
  for place, summary in [after[0], after[len(after) // 2], after[-1]]:
    go_to(chromium, place)
    drawn = nodes_shown(chromium)
    root = max((f.node for f in made.frames[: place + 1] if f.node is not None), default=0)
    above = made.path(root)[:-1]
    tree = {node: row for node, row in drawn.items() if node not in above}
    # By path below the root: the arrays have ids of their own.
    ours = {}
    for node, row in tree.items():
      path = made.path(node)[len(above) + 1 :]
      key = tuple(token for one in path for token in made.nodes[one].tokens)
      names = ("visitWeight", "visits", "value", "prior")
      numbers = tuple(float(row[name]) for name in names)
      ours[key] = (*numbers, int(row["depth"]), row["text"])
    theirs, paths = {}, {}
    for line in summary:
      top = line["parent"] not in paths
      paths[line["id"]] = () if top else paths[line["parent"]] + tuple(line["tokens"])
      text = "".join(f"<{token}>" for token in line["tokens"])
      theirs[paths[line["id"]]] = (
        line["visit_weight"],
        line["visits"],
        line["value"],
        line["prior"],
        line["depth"],
        text,
      )
    assert ours.pop(())[:4] == theirs.pop(())[:4]  # the text of a new root's edge is its parent's
    assert ours == theirs
  # The committed path, verdicts, discarded nodes and shared verdicts, at the end.
  click(chromium, "discarded")
  drawn = nodes_shown(chromium)
  assert len(drawn) == len(made.nodes)
  has = lambda name: {node for node, row in drawn.items() if name in row["classes"].split()}
  assert has("committed") == {0} | {i for i, n in enumerate(made.nodes) if n.committed is not None}
  assert has("dead") == {i for i, n in enumerate(made.nodes) if n.died is not None}
  verdicts = {v.node: v.verdict for f in made.frames for v in f.visits}
  assert {n: float(row["verdict"]) for n, row in drawn.items() if "verdict" in row} == verdicts
  arcs = chromium.execute_script(
    "return [...document.querySelectorAll('.similar')].map(a => [+a.dataset.a, +a.dataset.b])"
  )
  assert sorted(map(tuple, arcs)) == sorted({(a, b) for f in made.frames for a, b, _ in f.similar})
  no_errors(chromium)


def test_numbers_have_names_and_stay_in_their_boxes(chromium, tmp_path):
  texts = ["W" * 99, "\u4e2d\u6587" * 20, "\U0001f642" * 40, "short"]
  nodes = [recording.Node(-1, 0, [], "", "running", 0)]
  nodes += [recording.Node(0, 1, [i], text, "running", 0) for i, text in enumerate(texts)]
  visits = [recording.Visit(i, -1.0, "", "running") for i in range(1, 5)]
  changed = [[i, 123.4, 120, -0.25, 0.125] for i in range(5)]
  made = made_recording(nodes, [recording.Frame(0, recording.SEARCH, visits, changed=changed)])
  show(chromium, tmp_path, made)
  said = chromium.find_elements("css selector", "g.node .numbers")
  expected = "visits 123.4, value \u22120.25, prior 0.13"
  assert {one.text for one in said} == {expected, f"{expected}, verdict \u22121"}
  outside = chromium.execute_script(
    "return [...document.querySelectorAll('g.node')].flatMap(g => {"
    " const box = g.querySelector('rect').getBoundingClientRect();"
    " return [...g.querySelectorAll('text:not(.fold)')].filter(t => {"
    "  const a = t.getBoundingClientRect();"
    "  return a.left < box.left || a.right > box.right || a.top < box.top || a.bottom > box.bottom;"
    " }).map(t => t.textContent) })"
  )
  assert outside == [] and browser.overlaps(chromium) == []


def test_hostile_text_is_shown_and_never_run(chromium, tmp_path):
  nodes = [recording.Node(-1, 0, [], "", "running", 0)]
  nodes += [recording.Node(0, 1, [i], text, "running", 0) for i, text in enumerate(HOSTILE)]
  everything = " ".join(HOSTILE)
  visits = [recording.Visit(2, -1.0, everything, "stop", everything)]
  frames = [
    recording.Frame(
      0, recording.SEARCH, visits, changed=[[i, 1.0, 1, -1.0, 0.1] for i in range(len(nodes))]
    ),
    recording.Frame(0, recording.COMMIT, node=1, reason="trusted"),
  ]
  made = made_recording(
    nodes,
    frames,
    prompt=everything,
    response=everything,
    preference=HOSTILE[0],
    counters={HOSTILE[1]: 1, "__proto__": 2},
  )
  show(chromium, tmp_path, made)
  click(chromium, "unfold")
  go_to(chromium, 0)
  drawn = nodes_shown(chromium)
  assert len(drawn) == len(nodes)
  for node, text in enumerate(HOSTILE, 1):
    if text.isprintable():
      assert drawn[node]["text"] == text
  assert "\\u202e" in drawn[1 + HOSTILE.index("\u202egnidaer")]["text"]
  assert chromium.find_element("id", "prompt").text.startswith(HOSTILE[0])
  time.sleep(0.2)
  count = "return [window.hacked, document.images.length, document.scripts.length]"
  assert chromium.execute_script(count) == [None, 0, 2]
  no_errors(chromium)
  # Were markup to get in all the same, the page's policy would stop it.
  chromium.execute_script("document.body.insertAdjacentHTML('beforeend', arguments[0])", HOSTILE[1])
  chromium.execute_script(
    "const s = document.createElement('script'); s.textContent = 'window.hacked = 4';"
    "document.body.append(s)"
  )
  time.sleep(0.2)
  assert chromium.execute_script("return window.hacked") is None
  assert all("Content Security Policy" in line["message"] for line in chromium.get_log("browser"))


def test_three_hundred_nodes_take_less_than_a_second(chromium, tmp_path):
  nodes = [recording.Node(-1, 0, [], "", "running", 0)]
  nodes += [
    recording.Node((i - 1) // 10, 1, [i], f" token set {i} of many", "running", 0)
    for i in range(1, 301)
  ]
  changed = [[i, 1.5, 1, 0.5, 0.1] for i in range(301)]
  # Below what an iteration visited all is unfolded at first.
  visits = [recording.Visit(i, 1.0, "", "running") for i in range(30)]
  made = made_recording(nodes, [recording.Frame(0, recording.SEARCH, visits, changed=changed)])
  milliseconds = lambda name: float(
    chromium.execute_script("return document.documentElement.dataset[arguments[0]]", name)
  )
  times = []
  for _ in range(3):
    show(chromium, tmp_path, made)
    times.append(milliseconds("opened"))  # from the request to the end of the first drawing
    assert len(nodes_shown(chromium)) == 301
    click(chromium, "unfold")
    assert len(nodes_shown(chromium)) == 301
    times.append(milliseconds("milliseconds"))
  assert max(times) < 1000, times


def test_a_search_without_frames_opens(chromium, tmp_path):
  show(
    chromium,
    tmp_path,
    made_recording([recording.Node(-1, 0, [], "", "running", 0)], [], verdict=None),
  )
  assert chromium.find_element("id", "response").text == "a response"
  no_errors(chromium)


def test_a_page_names_no_address_and_its_data_cannot_close_its_element():
  made = made_recording([recording.Node(-1, 0, [], t, "running", 0) for t in HOSTILE], [])
  html = tree_page.render(made)
  assert set(re.findall(r"https?://[^\"' ]*", html)) == {"http://www.w3.org/2000/svg"}
  assert not re.search(r"\bsrc=|\bhref=|@import|url\(", html.replace("src=x", ""))
  assert html.count("<script") == html.count("</script>") == 2
  data = html.split('id="data">')[1].split("</script>")[0]
  assert data.isascii() and not set("<>&") & set(data)


def test_text_in_a_page_is_escaped_and_visible():
  assert page.text("<a b='c'>&\u202e\x1b\n") == "&lt;a b=&#x27;c&#x27;&gt;&amp;\\u202e\\u001b\n"
  with pytest.raises(ValueError):
    page.as_data(float("nan"))
