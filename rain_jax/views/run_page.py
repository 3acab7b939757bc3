"""The report of a run: `report.html` in its directory, and a page for every recorded search."""

import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from rain_jax.judges.share import Share
from rain_jax.methods import recording
from rain_jax.runs import directory, from_config, judgements
from rain_jax.runs.manifest import verdicts_by
from rain_jax.runs.results import key_of
from rain_jax.runs.summary import summarise
from rain_jax.text.repetition import repeats
from rain_jax.views import page, plots, responses, tree_page

REPORT = "report.html"
_SHOWN = 200  # prompts whose responses are in the page
_COST = ("model_calls_per_token", "tokens_forwarded_per_token", "seconds")
_REPEATS = "repeats"
_TITLES = {
  "model_calls_per_token": "calls per token",
  "tokens_forwarded_per_token": "forwarded per token",
  "distinct_2": "distinct\u20112",
}

Group = tuple[str, str]  # task, method
Summaries = Mapping[Group, Mapping[str, Any]]
Shares = Mapping[Group, Mapping[str, Share]]
Methods = Mapping[str, tuple[Mapping[str, Any], Mapping[str, Share]]]  # of one task


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
  judges = from_config.judges_of(manifest["config"])
  said: list[str] = []
  judgements.table(judgements.summarise(workdir, judges), said.append)
  answers = judgements.counted(workdir, judges, results)
  body = _body(manifest, results, recordings, answers, said)
  directory.replace_text(folder / REPORT, page.report(f"Run {folder.resolve().name}", body))
  return folder / REPORT


def _body(
  manifest: Mapping[str, Any],
  results: Sequence[dict],
  recordings: Sequence[tuple],
  answers: Mapping[judgements.Key, Mapping[str, bool]],
  said: Sequence[str],
) -> str:
  grouped: dict[Group, list[dict]] = {}
  for result in results:
    grouped.setdefault((result["task"], result["method"]), []).append(result)
  summaries = {key: summarise(some, key[1]) for key, some in grouped.items()}
  shares = {key: _shares(some, answers) for key, some in grouped.items()}
  versions = ", ".join(f"{name} {value}" for name, value in manifest["versions"].items())
  searches = [kept.recording for _, kept in recordings]
  judge = verdicts_by(manifest)
  by = f"; verdicts, where they are called own, by {page.text(judge)}" if judge else ""
  links = "".join(
    f'<li><a href="{page.text(name)}">{page.text(kept.task)} {page.text(kept.id)} {page.text(kept.method)}</a>'
    f' <span class="said">{page.text(kept.recording.prompt[:100])}</span></li>'
    for name, kept in recordings
  )
  judged = "".join(f"<p>{page.text(line)}</p>" for line in said)
  figures = [*_rates(summaries, shares), _iterations(results), _values(searches)]
  return "\n".join(
    [
      f"<h1>{page.text(manifest['model']['path'])}: {page.text(', '.join(manifest['config']['tasks']))}</h1>",
      f'<p class="note">{page.text(versions)}; seed {page.text(manifest["config"]["seed"])}{by}</p>',
      "<h2>Summary</h2>",
      _summary(summaries, shares),
      f"<details><summary>What each judge says</summary>{judged}</details>" if judged else "",
      "<h2>Plots</h2>",
      f'<div class="plots">{"".join(figures)}</div>',
      "<h2>Search trees</h2>",
      f"<ul>{links}</ul>" if links else '<p class="note">None recorded.</p>',
      "<h2>Responses</h2>",
      responses.side_by_side(results, answers, _SHOWN),
    ]
  )


def _shares(
  results: Iterable[dict], answers: Mapping[judgements.Key, Mapping[str, bool]]
) -> dict[str, Share]:
  """By measure, how many responses have it; the last is that they repeat themselves."""
  found: dict[str, list[bool]] = {}
  answered = [result for result in results if "counters" in result]
  for result in answered:
    for measure, answer in answers.get(key_of(result), {}).items():
      found.setdefault(measure, []).append(answer)
  if answered:
    found[_REPEATS] = [repeats(result["response"]) for result in answered]
  return {measure: Share(sum(some), len(some)) for measure, some in found.items()}


def _measures(shares: Iterable[Mapping[str, Share]]) -> list[str]:
  """What judges answered."""
  return [m for m in dict.fromkeys(m for some in shares for m in some) if m != _REPEATS]


def _summary(summaries: Summaries, shares: Shares) -> str:
  """Rates, cost and repetition as a table, and one with all other numbers, which is folded."""
  first = [*(_measures(shares.values()) or ["self_verdict"]), *_COST, _REPEATS]
  names = dict.fromkeys(name for summary in summaries.values() for name in summary)
  others = [name for name in names if name not in first and not name.endswith("_rate")]
  tasks = len({task for task, _ in summaries}) > 1

  def table(caption: str, columns: Sequence[str]) -> str:
    heads = ["task"] * tasks + ["method"]
    heads += [_TITLES.get(name, name.replace("_", " ")) for name in columns]
    head = "".join(f'<th scope="col">{page.text(name)}</th>' for name in heads)
    rows = [
      (f"<td>{page.text(key[0])}</td>" if tasks else "")
      + f'<th scope="row">{page.text(key[1])}</th>'
      + "".join(f"<td>{_cell(shares[key].get(c), summary.get(c))}</td>" for c in columns)
      for key, summary in summaries.items()
    ]
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return (
      f'<div class="wide"><table><caption>{caption}</caption><thead><tr>{head}</tr></thead>'
      f"<tbody>{body}</tbody></table></div>"
    )

  return (
    table("Rates with 95% intervals; calls and forwarded tokens are per response token", first)
    + f"<details><summary>All other numbers</summary>{table('Counts and means', others)}</details>"
  )


def _cell(share: Share | None, value: Any) -> str:
  if share is not None:
    rate, _, interval = str(share).partition(" ")
    return f"{rate} <small>{interval}</small>"
  if value is None:
    return "–"
  return page.text(f"{value:.2f}" if isinstance(value, float) else value)


def _figure(title: str, plot: str, without: str) -> str:
  return plots.figure(title, plot or f'<p class="note">{page.text(without)}</p>')


def _rates(summaries: Summaries, shares: Shares) -> list[str]:
  """Each task's rates, with intervals and against cost; of own verdicts where nobody judged."""
  tasks = list(dict.fromkeys(task for task, _ in summaries))
  figures, repetition = [], []
  for task in tasks:
    of = f" ({task})" if len(tasks) > 1 else ""
    mine = {
      method: (summaries[task, method], shares[task, method])
      for t, method in summaries
      if t == task and summaries[task, method]["responses"]
    }
    if not mine:
      continue
    measures = _measures(some for _, some in mine.values())
    for measure in measures:
      figures.append(plots.figure(f"{measure}{of}", _intervals(mine, measure)))
      figures.append(plots.figure(f"{measure} against cost{of}", _against_cost(mine, measure)))
    if not measures:
      figures.append(plots.figure(f"own verdict against cost{of}", _against_cost(mine, "")))
    repetition.append(plots.figure(f"{_REPEATS}{of}", _intervals(mine, _REPEATS)))
  return [*figures, *repetition] or [_figure("Rates", "", "no response yet")]


def _intervals(mine: Methods, measure: str) -> str:
  rows = {method: some.get(measure, Share(0, 0)) for method, (_, some) in mine.items()}
  return plots.intervals(rows, "percent of responses, with 95% intervals")


def _against_cost(mine: Methods, measure: str) -> str:
  """A measure, or the mean own verdict if it is "", over forwarded tokens."""
  points = []
  for colour, (method, (summary, some)) in enumerate(mine.items()):
    cost = max(summary["tokens_forwarded_per_token"], 1e-3)
    if measure in some:
      low, high = (100 * end for end in some[measure].interval)
      points.append(plots.Point(method, colour, cost, 100 * some[measure].rate, (low, high)))
    elif not measure and summary["self_verdict"] is not None:
      points.append(plots.Point(method, colour, cost, summary["self_verdict"]))
  if not points:
    return ""
  y_label, y_range = ("percent", (0, 100)) if measure else ("mean verdict", (-1, 1))
  return plots.scatter(points, "forwarded tokens per response token", y_label, y_range)


def _iterations(results: Iterable[dict]) -> str:
  """How many iterations a move of RAIN took, one count per response."""
  mine = [r["counters"] for r in results if r["method"] == "rain" and "counters" in r]
  values = [c.get("iterations", 0) / c["moves"] for c in mine if c.get("moves")]
  plot = plots.histogram(values, "iterations per move", "responses") if values else ""
  return _figure("Iterations per move of RAIN", plot, "no response of RAIN yet")


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
  plot = plots.lines(series, "depth in token sets", "mean value", (-1, 1)) if series else ""
  return _figure(
    "Values over depth",
    plot,
    "no search recorded: --config.record=K records those of each task's first K prompts",
  )
