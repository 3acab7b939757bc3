"""The report of a run: `report.html` in its directory, and a page for every recorded search."""

import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from rain_jax.methods import recording
from rain_jax.runs import directory, from_config, judgements
from rain_jax.runs.summary import summarise
from rain_jax.views import page, plots, tree_page

REPORT = "report.html"
_SHOWN = 200  # prompts whose responses are in the page


def write(workdir: str) -> pathlib.Path:
  """Writes the report of what is in a working directory so far; its path.

  Raises:
    RunError: there is no run in the directory, or one of its files cannot be read.
  """
  folder = pathlib.Path(workdir)
  manifest, results = directory.read_manifest(workdir), directory.read_results(workdir)
  recordings = []
  for kept in directory.recorded(workdir):
    html = kept.path.with_suffix(".html")
    directory.replace_text(html, tree_page.render(kept.recording))
    recordings.append((html.relative_to(folder).as_posix(), kept))
  style = (pathlib.Path(__file__).parent / "run.css").read_text(encoding="utf-8")
  verdicts = judgements.summarise(workdir, from_config.judges_of(manifest["config"]))
  body = _body(manifest, results, recordings, verdicts)
  directory.replace_text(
    folder / REPORT, page.document(f"Run {folder.resolve().name}", body, style)
  )
  return folder / REPORT


def _body(
  manifest: Mapping[str, Any],
  results: Sequence[dict],
  recordings: Sequence[tuple],
  judged: Mapping[str, Any],
) -> str:
  groups = _groups(results)
  if len({task for task, _ in groups}) == 1:  # judges' rates are by method alone
    groups = {key: summary | judged["rates"].get(key[1], {}) for key, summary in groups.items()}
  said: list[str] = []
  judgements.table(judged, said.append)
  versions = ", ".join(f"{name} {value}" for name, value in manifest["versions"].items())
  figures = [
    _figure("Quality against cost", _quality(groups), "no response yet"),
    _figure("Iterations per move", _iterations(results), "no response of RAIN yet"),
    _figure(
      "Values over depth",
      _values([kept.recording for _, kept in recordings]),
      "no search recorded: --config.record=K records those of each task's first K prompts",
    ),
  ]
  links = "".join(
    f'<li><a href="{page.text(name)}">{page.text(kept.task)} {page.text(kept.id)} {page.text(kept.method)}</a>'
    f' <span class="said">{page.text(kept.recording.prompt[:100])}</span></li>'
    for name, kept in recordings
  )
  return "\n".join(
    [
      f"<h1>{page.text(manifest['model']['path'])}: {page.text(', '.join(manifest['config']['tasks']))}</h1>",
      f'<p class="note">{page.text(versions)}; seed {page.text(manifest["config"]["seed"])}</p>',
      "<h2>Summary</h2>",
      _table(groups),
      "".join(f"<p>{page.text(line)}</p>" for line in said),
      f'<h2>Plots</h2><div class="plots">{"".join(figures)}</div>',
      "<h2>Search trees</h2>",
      f"<ul>{links}</ul>" if links else '<p class="note">None recorded.</p>',
      "<h2>Responses</h2>",
      _responses(results),
    ]
  )


def _groups(results: Iterable[dict]) -> dict[tuple[str, str], dict[str, Any]]:
  """(task, method) -> its summary, in the order of the results."""
  found: dict[tuple[str, str], list[dict]] = {}
  for result in results:
    found.setdefault((result["task"], result["method"]), []).append(result)
  return {key: summarise(group, key[1]) for key, group in found.items()}


def _table(groups: Mapping[tuple[str, str], Mapping[str, Any]]) -> str:
  columns = list(dict.fromkeys(name for summary in groups.values() for name in summary))
  head = "".join(f"<th>{page.text(c.replace('_', ' '))}</th>" for c in ("task", "method", *columns))
  rows = [
    "".join(
      f"<td>{page.text(cell)}</td>" for cell in (*key, *(_cell(c, s.get(c)) for c in columns))
    )
    for key, s in groups.items()
  ]
  return f"<table><tr>{head}</tr>{''.join(f'<tr>{row}</tr>' for row in rows)}</table>"


def _cell(column: str, value: Any) -> str:
  if value is None:
    return "–"
  if column.endswith("_rate") or column == "repeats":
    return f"{100 * value:.1f}%"
  return f"{value:.2f}" if isinstance(value, float) else str(value)


def _figure(title: str, plot: str, without: str) -> str:
  inside = plot or f'<p class="note">{page.text(without)}</p>'
  return f"<figure><h3>{page.text(title)}</h3>{inside}</figure>"


def _quality(groups: Mapping[tuple[str, str], Mapping[str, Any]]) -> str:
  """Rates of the judges (share of good self-verdicts without one) over tokens forwarded."""
  points = []
  for (task, method), summary in groups.items():
    if not summary["responses"]:
      continue
    rates = {n.removesuffix("_rate"): v for n, v in summary.items() if n.endswith("_rate")}
    if not rates and summary["self_verdict"] is not None:
      rates = {"self-verdict": (summary["self_verdict"] + 1) / 2}
    cost = max(summary["tokens_forwarded_per_token"], 1e-3)
    points += [plots.Point(f"{method}: {n}", method, cost, 100 * v) for n, v in rates.items()]
  if not points:
    return ""
  return plots.scatter(points, "tokens forwarded per response token", "percent", (0, 100))


def _iterations(results: Iterable[dict]) -> str:
  """How many iterations a move took, one count per response."""
  counters = [r["counters"] for r in results if r.get("counters", {}).get("moves")]
  values = [c["iterations"] / c["moves"] for c in counters]
  return plots.histogram(values, "iterations per move", "responses") if values else ""


def _values(searches: Sequence[recording.Recording]) -> str:
  """Mean value by depth: of all visited token sets when the search left them, and of moves."""
  visited: dict[int, list[float]] = {}
  committed: dict[int, list[float]] = {}
  for search in searches:
    q = {node: q for frame in search.frames for node, n, _, q, _ in frame.changed if n > 0}
    for place, value in q.items():
      node = search.nodes[place]
      visited.setdefault(node.depth, []).append(value)
      if node.committed is not None:
        committed.setdefault(node.depth, []).append(value)
  mean = lambda found: [(depth, float(np.mean(found[depth]))) for depth in sorted(found)]
  series = {"visited": mean(visited), "committed": mean(committed)}
  series = {name: line for name, line in series.items() if line}
  return plots.lines(series, "depth in token sets", "mean value q", (-1, 1)) if series else ""


def _responses(results: Sequence[dict]) -> str:
  by_prompt: dict[tuple[str, str], list[dict]] = {}
  for result in results:
    by_prompt.setdefault((result["task"], result["id"]), []).append(result)
  parts = []
  for answers in list(by_prompt.values())[:_SHOWN]:
    shown = "".join(
      f'<dt>{page.text(a["method"])} <span class="note">{page.text(_verdict(a))}</span></dt>'
      f'<dd class="said">{page.text(a.get("error") or a["response"])}</dd>'
      for a in answers
    )
    prompt = page.text(answers[0]["prompt"][:200])
    parts.append(f'<details><summary class="said">{prompt}</summary><dl>{shown}</dl></details>')
  left = len(by_prompt) - _SHOWN
  if left > 0:
    parts.append(f'<p class="note">{left} more in {directory.RESULTS}.</p>')
  return "".join(parts)


def _verdict(answer: Mapping[str, Any]) -> str:
  said = [] if answer.get("verdict") is None else [f"own verdict {answer['verdict']:+g}"]
  return ", ".join(said + [f"{name}: {value}" for name, value in answer.get("judged", {}).items()])
