"""A run in numbers: rates and costs of each method."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from rain_jax import judges
from rain_jax.text.columns import aligned
from rain_jax.text.printable import one_line
from rain_jax.text.repetition import distinct_2, repeats

# What a table calls a number whose full name is long.
_SHORT = {
  "tokens_per_response": "tokens",
  "log_likelihood_per_token": "log-likelihood per token",
  "model_calls_per_token": "calls per token",
  "tokens_forwarded_per_token": "forwarded per token",
}
# Counters of the methods that draft segments.
_DRAFTING = ("drafts", "taken_back", "searched_moves")


def summarise(results: Iterable[Mapping[str, Any]], method: str) -> dict[str, Any]:
  """Rates and costs of one method over the results of a run."""
  mine = [r for r in results if r["method"] == method]
  answered = [r for r in mine if "counters" in r]
  verdicts = [r["verdict"] for r in answered if r.get("verdict") is not None]
  failed = [r for r in mine if r.get("finish_reason") == "failed"]
  texts = [r["response"] for r in answered]
  distinct = [share for share in map(distinct_2, texts) if share is not None]
  total = lambda name: sum(r["counters"].get(name, 0) for r in answered)
  tokens = max(total("response_tokens"), 1)
  summary: dict[str, Any] = dict(judges.rate(r.get("judged", {}) for r in answered))
  summary |= {
    "responses": len(answered),
    "rejected": len(mine) - len(answered) - len(failed),
    "failed": len(failed),
    "unjudged": sum("unjudged" in r for r in answered),
    "self_verdict": float(np.mean(verdicts)) if verdicts else None,
    "tokens_per_response": tokens / max(len(answered), 1),
    "repeats": float(np.mean([repeats(text) for text in texts])) if texts else None,
    "distinct_2": float(np.mean(distinct)) if distinct else None,
    "log_likelihood_per_token": log_likelihood_per_token(answered),
    "model_calls_per_token": total("model_calls") / tokens,
    "tokens_forwarded_per_token": total("tokens_forwarded") / tokens,
    "iterations_per_move": total("iterations") / max(total("moves"), 1),
    "rewinds_per_response": total("rewinds") / max(len(answered), 1),
    "seconds": sum(r.get("seconds", 0.0) for r in answered),
  }
  if total("drafts"):
    summary |= {f"{name}_per_response": total(name) / max(len(answered), 1) for name in _DRAFTING}
  samples = [r["counters"]["samples"] for r in answered if "samples" in r["counters"]]
  if samples:
    summary["samples"] = float(np.mean(samples))
  return summary


def log_likelihood_per_token(results: Iterable[Mapping[str, Any]]) -> float | None:
  """Mean over the tokens of all responses, in nats; None if none was read.

  Files of earlier versions have no log-likelihoods.
  """
  known = [r for r in results if "log_likelihood" in r and "counters" in r]
  tokens = sum(r["counters"].get("response_tokens", 0) for r in known)
  return sum(r["log_likelihood"] for r in known) / tokens if tokens else None


def table(summary: Mapping[str, Any]) -> str:
  """The summary as a table in plain text, one row per method, and what the table leaves out."""
  methods = summary["methods"]
  columns = sorted({k for m in methods.values() for k in m if k.endswith("_rate")})
  columns = columns or ["self_verdict"]  # nobody else said anything
  columns += ["responses", "rejected"]
  for name in ("failed", "unjudged"):
    columns += [name] * any(m.get(name) for m in methods.values())
  columns += ["repeats", "distinct_2", "log_likelihood_per_token", "tokens_per_response"]
  columns += ["model_calls_per_token", "tokens_forwarded_per_token"]
  columns += ["iterations_per_move", "rewinds_per_response"]
  drafting = [f"{name}_per_response" for name in _DRAFTING]
  columns += drafting * any(drafting[0] in m for m in methods.values())
  columns += ["samples"] * any("samples" in m for m in methods.values()) + ["seconds"]
  judge = summary.get("verdicts_by", "")
  short = _SHORT | ({"self_verdict": "other's verdict"} if judge else {})
  rows = [["method", *(short.get(c, c.replace("_", " ")) for c in columns)]]
  for name, values in methods.items():
    rows.append([name, *(_cell(column, values.get(column)) for column in columns)])
  lines = [aligned(rows)]
  if judge:
    lines.append(f"verdicts, of searches too, by {one_line(judge)}: no self-evaluation")
  for task, count in summary.get("left_out", {}).items():
    lines.append(
      f"{task}: {count} rows left out, which could not be used; manifest.json names them"
    )
  return "\n".join(lines)


def _cell(column: str, value: Any) -> str:
  if value is None:
    return "-"
  if column.endswith("_rate") or column == "repeats":
    return f"{100 * value:.1f}%"
  if column in ("distinct_2", "log_likelihood_per_token"):
    return f"{value:.2f}"
  if column == "self_verdict":
    return f"{value:+.2f}"
  return str(value) if isinstance(value, int) else f"{value:.1f}"
