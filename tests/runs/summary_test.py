"""A run in numbers."""

from rain_jax.runs import summary

COUNTERS = {"response_tokens": 4, "model_calls": 8, "tokens_forwarded": 40}


def result(**more):
  return {
    "method": "vanilla",
    "finish_reason": "eos",
    "verdict": -1.0,
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
