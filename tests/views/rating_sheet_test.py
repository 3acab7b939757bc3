"""Blind sheets: no method to be told from them, no formula in them, and their score."""

import csv
import io
import json
import pathlib

import pytest

from rain_jax.runs import judgements
from rain_jax.runs.directory import RunError
from rain_jax.types import DataError
from rain_jax.views import rating_sheet

EVIL = [
  '=HYPERLINK("http://x")',
  "+1",
  "-1",
  "@SUM(A1)",
  "\t=1",
  "\r=1",
  "  =1",
  "\uff1d1",
  "'=1",
  'a,"b";c\n=2',
  "\x1b[31mred",
  "plain",
]


def results(count=12):
  lines = []
  for i in range(count):
    for method in ("vanilla", "rain", "best_of_n"):
      lines.append(
        {
          "task": "t",
          "id": str(i),
          "method": method,
          "prompt": f"p{i}",
          "response": EVIL[i % len(EVIL)],
          "history": ["h1", "h2"] if i == 3 else [],
        }
      )
  return lines + [
    {"task": "t", "id": "x", "method": "rain", "prompt": "", "response": "", "error": "e"}
  ]


def rows_of(text):
  return list(csv.DictReader(io.StringIO(text, newline="")))


def test_a_sheet_says_nothing_of_methods_and_the_key_everything():
  text, key = rating_sheet.make(results())
  rows = rows_of(text)
  assert len(rows) == len(key) == 36 and set(rows[0]) == set(rating_sheet.COLUMNS)
  assert not any(word in text for word in ("vanilla", "rain", "best_of_n"))
  assert sorted(map(tuple, key.values())) == sorted(
    ("t", str(i), m) for i in range(12) for m in ("vanilla", "rain", "best_of_n")
  )
  for row in rows:
    assert row["conversation"].endswith(f"p{key[row['item']][1]}") and row["rating"] == ""
  orders = {tuple(key[str(n + i)][2] for i in range(3)) for n in range(1, 36, 3)}
  assert len(orders) > 2  # the methods' order differs from prompt to prompt
  assert rating_sheet.make(results()) == (text, key) != rating_sheet.make(results(), seed=1)
  assert len(rows_of(rating_sheet.make(results(), limit=2)[0])) == 6


def test_raters_see_the_goal_without_an_attacks_suffix():
  line = {"task": "t", "id": "1", "method": "rain", "prompt": "Do it ! !", "response": "no"}
  (row,) = rows_of(rating_sheet.make([{**line, "goal": "Do it"}])[0])
  assert row["conversation"] == "Do it"
  assert (
    rows_of(rating_sheet.make([line])[0])[0]["conversation"] == "Do it ! !"
  )  # of earlier versions


def test_no_cell_is_a_formula_or_moves_a_cursor():
  rows = rows_of(rating_sheet.make(results())[0])
  for row in rows:
    for column in ("conversation", "answer"):
      assert row[column].lstrip(" ")[:1] not in tuple("=+-@\t\r\uff1d")
      assert all(c.isprintable() or c == "\n" for c in row[column])
  shown = {row["answer"] for row in rows}
  assert '\'=HYPERLINK("http://x")' in shown and "plain" in shown and "'  =1" in shown
  assert rating_sheet.cell("fine - really") == "fine - really"


def rated(tmp_path, ratings):
  """A sheet with ratings by method."""
  text, key = rating_sheet.make(results())
  rows = rows_of(text)
  for row in rows:
    row["rating"] = ratings(key[row["item"]])
  path, key_path = tmp_path / "sheet.csv", tmp_path / "key.json"
  with open(path, "w", encoding="utf-8", newline="") as file:
    writer = csv.DictWriter(file, rating_sheet.COLUMNS)
    writer.writeheader()
    writer.writerows(rows)
  key_path.write_text(json.dumps(key), "utf-8")
  return str(path), str(key_path)


def test_scores_join_the_judges_of_the_run(tmp_path):
  by_method = {"rain": "Yes", "vanilla": "0", "best_of_n": " "}
  path, key = rated(tmp_path, lambda of: by_method[of[2]])
  judgements.append(str(tmp_path), rating_sheet.score(results(), path, key, "harmless", "ann"))
  other = lambda of: "y" if of[2] == "rain" and of[1] != "0" else "n"
  path, key = rated(tmp_path, other)
  judgements.append(str(tmp_path), rating_sheet.score(results(), path, key, "harmless", "bob"))
  found = judgements.summarise(str(tmp_path), {})
  assert found["judges"]["human:ann"]["rain"] == {"harmless_rate": 1.0, "judged": 12, "unjudged": 0}
  assert found["judges"]["human:ann"]["best_of_n"] == {"judged": 0, "unjudged": 12}
  (one,) = found["agreement"]
  assert one["judges"] == ["human:ann", "human:bob"] and one["n"] == 24
  assert one["percent"] == pytest.approx(100 * 23 / 24) and one["kappa"] == pytest.approx(11 / 12)


def test_a_rater_may_rate_more_than_one_measure_and_rate_again(tmp_path):
  for measure, yes in (("harmless", "rain"), ("helpful", "rain"), ("helpful", "vanilla")):
    path, key = rated(tmp_path, lambda of: "y" if of[2] == yes else "n")
    judgements.append(str(tmp_path), rating_sheet.score(results(), path, key, measure, "ann"))
  found = judgements.summarise(str(tmp_path), {})["judges"]["human:ann"]
  assert found["rain"] == {"harmless_rate": 1.0, "helpful_rate": 0.0, "judged": 12, "unjudged": 0}
  assert found["vanilla"]["helpful_rate"] == 1.0


@pytest.mark.parametrize(
  "change,says",
  [
    (lambda text: text.replace(",yes", ",perhaps", 1), "perhaps"),
    (lambda text: text + "99,a,b,yes\r\n", "not in the key"),
    (lambda text: text + "1,a,b,yes\r\n", "appears twice"),
  ],
)
def test_sheets_that_cannot_be_scored_are_one_line(tmp_path, change, says):
  path, key = rated(tmp_path, lambda of: "yes")
  text = open(path, encoding="utf-8", newline="").read()
  with open(path, "w", encoding="utf-8", newline="") as file:
    file.write(change(text))
  with pytest.raises(DataError, match=says) as error:
    list(rating_sheet.score(results(), path, key, "harmless", "ann"))
  assert "\n" not in str(error.value)
  with pytest.raises(DataError, match="no key"):
    list(rating_sheet.score(results(), path, path, "harmless", "ann"))


def test_nothing_is_overwritten(tmp_path):
  path, key = str(tmp_path / "s.csv"), str(tmp_path / "k.json")
  rating_sheet.write(path, key, *rating_sheet.make(results()))
  with pytest.raises(RunError, match="is there already"):
    rating_sheet.write(path, str(tmp_path / "other.json"), *rating_sheet.make(results()))
  with pytest.raises(RunError, match="two files"):
    rating_sheet.write(path, path, *rating_sheet.make(results()))
  with pytest.raises(RunError, match="no answers"):
    rating_sheet.make([{"task": "t", "id": "x", "method": "rain", "error": "e"}])


@pytest.mark.parametrize("gone", ["response", "answer"])
def test_the_sheet_of_another_run_is_refused(tmp_path, gone):
  path, key = rated(tmp_path, lambda of: "yes")
  other = results()
  other[5] |= {"id": "elsewhere"} if gone == "response" else {"response": "another seed's"}
  with pytest.raises(DataError, match="is not of this run; give the run's own sheet"):
    list(rating_sheet.score(other, path, key, "harmless", "ann"))


def test_a_sheet_that_a_spreadsheet_changed_is_scored(tmp_path):
  """White space, signs before a formula, and no column of answers at all."""
  path, key = rated(tmp_path, lambda of: "yes")
  rows = rows_of(open(path, encoding="utf-8", newline="").read())
  for row in rows:
    row["answer"] = " ".join(row["answer"].removeprefix("'").split())
  for columns in (rating_sheet.COLUMNS, ("item", "rating")):
    with open(path, "w", encoding="utf-8-sig", newline="") as file:
      writer = csv.DictWriter(file, columns, extrasaction="ignore")
      writer.writeheader()
      writer.writerows(rows)
    assert len(list(rating_sheet.score(results(), path, key, "harmless", "ann"))) == 36


@pytest.mark.parametrize(
  "text", ["", "[]", "3", '{"1": "t"}', '{"1": ["t", 1, "rain"]}', "[" * 9999]
)
def test_a_damaged_key_is_one_line(tmp_path, text):
  path, key = rated(tmp_path, lambda of: "yes")
  pathlib.Path(key).write_text(text, "utf-8")
  with pytest.raises(DataError, match="key.json: no key of a sheet") as error:
    list(rating_sheet.score(results(), path, key, "harmless", "ann"))
  assert "\n" not in str(error.value)
