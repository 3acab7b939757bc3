"""The registry of methods: every method is called alike, and configurations name them all."""

import inspect
import json
import re
import types

import pytest

from rain_jax.methods import METHODS, find_method
from rain_jax.runs import job
from rain_jax.types import DataError
from tests.helpers import small_runs
from tests.helpers.repository import ROOT, load_config


@pytest.mark.parametrize("name", METHODS)
def test_every_method_takes_the_same_and_the_options_that_its_configuration_gives(name):
  config = load_config("common").get_config().to_dict()
  config["guard"]["judge"] = "self"
  options = METHODS[name].options(config)
  for function in (METHODS[name].run, METHODS[name].watch):
    if function is not None:
      first, *more = list(inspect.signature(function).parameters.items())
      assert [key for key, _ in [first, *more[:3]]] == ["session", "seed", "skip", "on_progress"]
      assert all(one.kind is one.KEYWORD_ONLY for _, one in more[3:])
      inspect.signature(function).bind(None, 0, frozenset(), None, **options)


def test_the_options_page_names_all_methods():
  page = (ROOT / "docs" / "options.md").read_text("utf-8")
  said, *_ = re.findall(r"^\| `methods` \|.*\| (.*) \|$", page, re.MULTILINE)  # a run's first
  assert sorted(said.split(", ")) == sorted(METHODS)


def test_unknown_methods_are_refused_by_name():
  with pytest.raises(DataError, match="Unknown method 'magic': expected one of vanilla, rain"):
    find_method("magic")


def test_best_of_n_is_paid_for_by_the_searches_of_the_run():
  session = types.SimpleNamespace(preference=types.SimpleNamespace(suffix_ids=((1, 2), (3,))))
  lines = {
    "rain": [{"counters": {"tokens_forwarded": n, "response_tokens": 8}} for n in (900, 1100)],
    "vanilla": [{"counters": {"response_tokens": 11}}, {"error": "rejected"}],
  }
  method, results = METHODS["best_of_n"], lambda name: lines.get(name, [])
  assert method.incomplete({"samples": 0}) and not method.incomplete({"samples": 3})
  assert method.complete(session, {"samples": 3}, results) == {"samples": 3}
  # Each sample is generated, and judged with both suffixes: 11 + 11 + 3 tokens.
  assert method.complete(session, {"samples": 0}, results) == {"samples": 1000 // 25}
  del lines["vanilla"]
  assert method.complete(session, {"samples": 0}, results) == {"samples": round(1000 / 19)}
  del lines["rain"]
  with pytest.raises(DataError, match="add rain to methods"):
    method.complete(session, {"samples": 0}, results)


def test_what_waits_for_others_is_refused_where_no_process_has_all_results(tmp_path):
  config = json.loads(json.dumps(small_runs.CONFIG))
  with pytest.raises(DataError, match="config.best_of_n.*no one process knows"):
    job.run(config, str(tmp_path), hosts=job.Hosts(0, 2))
