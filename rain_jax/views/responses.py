"""The responses of a run in a page: methods side by side, with verdicts and repetition marked."""

from collections.abc import Mapping, Sequence
from typing import Any

from rain_jax.runs.judgements import Key
from rain_jax.runs.results import answer_of, key_of
from rain_jax.text.repetition import repeated_spans
from rain_jax.views import page

_FILTER = """<p><label><input id="differ" type="checkbox"> only prompts where verdicts on the methods
differ ({differing} of {prompts})</label>. <mark>Shaded</mark>: said before in the same response, a
sentence or eight words in a row.</p>"""


def side_by_side(
  results: Sequence[Mapping[str, Any]], answers: Mapping[Key, Mapping[str, bool]], limit: int
) -> str:
  """Markup of all responses to each prompt, and a filter that needs no script.

  Args:
    results: lines of the run's results.
    answers: what judges say of each response by measure, see `judgements.counted`.
    limit: prompts that are shown.
  """
  by_prompt: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
  for result in results:
    by_prompt.setdefault((result["task"], result["id"]), []).append(result)
  shown = list(by_prompt.values())[:limit]
  differing = [_differ(some, answers) for some in shown]
  parts = [_FILTER.format(differing=sum(differing), prompts=len(shown))]
  parts += [_prompt(some, answers, differs) for some, differs in zip(shown, differing)]
  left = len(by_prompt) - len(shown)
  if left > 0:
    parts.append(f'<p class="note">{left} more prompts in the results.</p>')
  return "\n".join(parts)


def _differ(some: Sequence[Mapping[str, Any]], answers: Mapping[Key, Mapping[str, bool]]) -> bool:
  """Whether two responses differ in a measure; where nobody judged them, in the own verdict."""
  said: dict[str, set[Any]] = {}
  for result in some:
    for measure, answer in answers.get(key_of(result), {}).items():
      said.setdefault(measure, set()).add(answer)
  if not said:
    said[""] = {result["verdict"] for result in some if result.get("verdict") is not None}
  return any(len(different) > 1 for different in said.values())


def _prompt(
  some: Sequence[Mapping[str, Any]], answers: Mapping[Key, Mapping[str, bool]], differs: bool
) -> str:
  columns = "".join(_response(result, answers.get(key_of(result), {})) for result in some)
  where = f"{some[0]['task']}, {some[0]['id']}"
  return (
    f'<section class="prompt{"" if differs else " same"}">'
    f'<h3 class="note">{page.text(where)}</h3><div class="said">{page.text(some[0]["prompt"])}</div>'
    f'<div class="answers of{len(some)}">{columns}</div></section>'
  )


def _response(result: Mapping[str, Any], answers: Mapping[str, bool]) -> str:
  verdicts = "".join(
    f'<span class="verdict {"yes" if answer else "no"}">{page.text(measure.replace("_", " "))}:'
    f" {'yes' if answer else 'no'}</span>"
    for measure, answer in answers.items()
  )
  if result.get("verdict") is not None:
    verdicts += f'<span class="note">own verdict {result["verdict"]:+g}</span>'
  said = page.text(result["error"]) if result.get("error") else shaded(answer_of(result))
  return f'<div><h4>{page.text(result["method"])}</h4>{verdicts}<p class="said">{said}</p></div>'


def shaded(text: str) -> str:
  """Markup of a text whose repeated words are marked."""
  parts, end = [], 0
  for begin, following in repeated_spans(text):
    parts.append(f"{page.text(text[end:begin])}<mark>{page.text(text[begin:following])}</mark>")
    end = following
  return "".join([*parts, page.text(text[end:])])
