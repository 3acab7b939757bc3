"""Plots place values where they belong, and no label lies on another, whatever the values."""

import random
import xml.etree.ElementTree as ElementTree

from rain_jax.judges.share import Share
from rain_jax.views import page, plots
from tests.helpers import browser


def point(label, x, y):
  return plots.Point(label, 0, x, y, (y - 1, y + 1))


def test_a_scatter_plot_has_a_logarithmic_axis():
  points = [point("<a>", 1, 0), point("b", 100, 50), point("c", 10, 100)]
  svg = ElementTree.fromstring(plots.scatter(points, "x", "y", (0, 100)))
  one, hundred, ten = [(float(c.get("cx")), float(c.get("cy"))) for c in svg.iter("circle")]
  assert one[0] < ten[0] < hundred[0] and one[1] > hundred[1] > ten[1]
  assert abs((ten[0] - one[0]) - (hundred[0] - ten[0])) < 0.2
  names = [text.text for text in svg.iter("text")][-3:]
  assert names == ["c", "b", "<a>"]  # from the top


def test_an_interval_lies_around_its_share():
  shares = {"some": Share(3, 4), "none": Share(0, 9), "nothing": Share(0, 0)}
  svg = ElementTree.fromstring(plots.intervals(shares, "percent"))
  circles = [float(c.get("cx")) for c in svg.iter("circle")]
  ends = [
    p.get("d").split("M")[1].split(",")[0] for p in svg.iter("path") if "line" in p.get("class")
  ]
  assert len(circles) == len(ends) == 2
  texts = [text.text for text in svg.iter("text")]
  at = {text.text: float(text.get("x")) for text in svg.iter("text")}
  per_percent = (at["100"] - at["0"]) / 100
  assert abs(circles[0] - at["0"] - 75 * per_percent) < 0.2 and circles[1] == at["0"]
  assert abs(float(ends[0]) - at["0"] - 30.06 * per_percent) < 0.2  # Wilson's, of 3 of 4
  assert "0.0% [0, 30]" in texts and "-" in texts


def test_a_histogram_counts_every_value():
  for values in ([3.0], [3.0, 3.0], [0.1, 0.2, 7.5], list(range(100)), [-4.0, 1e6]):
    svg = ElementTree.fromstring(plots.histogram(values, "x", "y"))
    counts = [int(title.text.split(": ")[1]) for title in svg.iter("title")]
    assert sum(counts) == len(values)
    assert all(float(rect.get("height")) >= 0 for rect in svg.iter("rect"))


def test_lines_have_all_their_points():
  line = {"a": [(0, 1.0)], "b": [(0, 0.0), (4, -1.0)]}
  svg = ElementTree.fromstring(plots.lines(line, "x", "y", (-1, 1)))
  assert [len(line.get("points").split()) for line in svg.iter("polyline")] == [1, 2]


def test_no_label_lies_on_another(tmp_path):
  rng = random.Random(0)
  drawn = []
  for count in (1, 2, 4, 20):
    names = [f"method {i}" for i in range(count)]
    for low, high in ((1, 1), (7, 8), (1e-3, 1e15), (5, 900)):
      for top in (0, 50, 100):
        points = [point(n, rng.uniform(low, high), rng.uniform(top, 100)) for n in names]
        drawn.append(plots.scatter(points, "x", "y", (0, 100)))
    drawn.append(plots.lines({n: [(0, 0), (1, 1)] for n in names}, "x", "y", (-1, 1)))
    drawn.append(plots.intervals({n: Share(200, 200) for n in names}, "x"))
  for values in ([3.0], [0.0, 1e15], [1e6, 1.1e6], [-0.001, 0.001], list(range(200))):
    drawn.append(plots.histogram(values, "x", "y"))
  drawn.append(plots.intervals({t: Share(1, 3) for t in (*browser.HOSTILE, "\u4e2d" * 99)}, "x"))
  html = tmp_path / "plots.html"
  body = "".join(plots.figure("<i>", plot) for plot in drawn)
  html.write_text(page.report("plots", body), "utf-8")
  driver = browser.open_browser()
  try:
    browser.emulate(driver)
    driver.get(html.as_uri())
    assert len(driver.find_elements("css selector", "figure > svg")) == len(drawn)
    assert browser.overlaps(driver) == []
    browser.no_errors(driver)
  finally:
    driver.quit()
