"""The page of one response's search: its tree, iteration by iteration."""

import pathlib

from rain_jax.methods.recording import Recording
from rain_jax.views import page

_FOLDER = pathlib.Path(__file__).parent
_BODY = """<header>
<h1>Search tree</h1>
<p><b>Prompt</b> <span id="prompt" class="said"></span></p>
<p><b>Response</b> <span id="response" class="said"></span></p>
<details><summary id="outcome"></summary><dl id="counters"></dl></details>
</header>
<section id="controls">
<label>Frame <input id="slider" type="range" min="0" step="1"></label>
<output id="place"></output>
<label><input id="discarded" type="checkbox" checked> discarded token sets</label>
<button id="unfold">unfold all</button>
<button id="fold">fold</button>
</section>
<section id="event" aria-live="polite">
<p id="happened"></p>
<p class="said"><span id="final"></span><ins id="trial"></ins><del id="rewound"></del></p>
</section>
<main id="view"><svg id="tree" role="tree" aria-label="search tree"></svg></main>
<aside id="node">Select a node to read all of it.</aside>
<footer>Boxes are token sets. Visits: the visit weight; siblings that read alike share visits.
Value: the mean verdict, from −1 to +1. Prior: the model's probability among siblings. Verdict: the
last one on a leaf. Blue: committed. Dashed: discarded. Arcs: siblings that shared a verdict.</footer>"""


def render(recording: Recording) -> str:
  """The search of one response as a page that stands alone."""
  source = lambda name: (_FOLDER / name).read_text(encoding="utf-8")
  return page.document(
    "Search tree", _BODY, source("tree.css"), source("tree.js"), recording.as_json()
  )
