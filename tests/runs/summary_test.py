"""A run in numbers."""

from rain_jax.runs import summary

COUNTERS = {"response_tokens": 4, "model_calls": 8, "tokens_forwarded": 40}


def result(**more):
  return {
    "method": "vanilla",
    "finish_reason": "eos",
    "verdict": -1.0,
    "response": "I think so.",
    "counters": COUNTERS,
    "seconds": 1.0,
    **more,
  }


def shown(results):
  head, row = summary.table(
    {"methods": {"vanilla": summary.summarise(results, "vanilla")}}
  ).splitlines()
  return head, row.split()


def test_the_models_own_verdict_is_shown_where_nobody_else_judged():
  head, row = shown([result(), result(verdict=1.0), result(verdict=None), result(method="rain")])
  assert "self verdict" in head and row[:4] == ["vanilla", "+0.00", "3", "0"]
  head, row = shown([result(judged={"harmless": True}), result(judged={"harmless": False})])
  assert "self verdict" not in head and "harmless rate" in head and row[:2] == ["vanilla", "50.0%"]


def test_best_of_n_shows_how_many_it_chose_from():
  head, row = shown([result(counters={**COUNTERS, "samples": 118})])
  assert head.split()[-2:] == ["samples", "seconds"] and row[-2] == "118.0"
  assert "samples" not in shown([result()])[0]


def test_repetition_is_counted_per_method():
  texts = ["Go away. Go away.", "One two three.", ""]
  found = summary.summarise([result(response=text) for text in texts], "vanilla")
  assert found["repeats"] == 1 / 3 and found["distinct_2"] == (2 / 3 + 1) / 2
  empty = summary.summarise([], "vanilla")
  assert empty["repeats"] is None and empty["distinct_2"] is None


def test_log_likelihood_is_per_token_and_empty_where_files_have_none():
  twice = {**COUNTERS, "response_tokens": 12}
  results = [result(log_likelihood=-8.0), result(log_likelihood=-12.0, counters=twice), result()]
  assert summary.summarise(results, "vanilla")["log_likelihood_per_token"] == -20 / 16
  head, row = shown(results)
  assert "log-likelihood per token" in head and "-1.25" in row
  assert summary.summarise([result()], "vanilla")["log_likelihood_per_token"] is None
