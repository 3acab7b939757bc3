"""How well embeddings from a model's hidden states agree with all-MiniLM-L6-v2.

  python scripts/compare_embedders.py --model=demo --minilm=/models/all-MiniLM-L6-v2
  python scripts/compare_embedders.py --model=/models/llama --minilm=... --texts=TruthfulQA.csv

Compares pairs of continuations of one prompt, as the search compares siblings. Without
--texts they are sampled from the model for the demo world's prompts, and cut after a
text end; a TruthfulQA csv gives real ones, the answers to one question.
"""

import csv
import itertools

import cli
import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from rain_jax import methods
from rain_jax.methods.session import Session, SessionConfig, search_config
from rain_jax.models import NO_POSITION, forward
from rain_jax.models.loading import load
from rain_jax.models.minilm import load_minilm
from rain_jax.policy.embedders import HiddenStates
from rain_jax.preferences import load_preference
from rain_jax.tasks import find_task, load_prompts
from rain_jax.text import control, encoding, vocab

_MODEL = flags.DEFINE_string("model", "demo", "Checkpoint folder, hub name, or demo.")
_MINILM = flags.DEFINE_string("minilm", None, "Folder of all-MiniLM-L6-v2.", required=True)
_TEXTS = flags.DEFINE_string("texts", "", "TruthfulQA csv; sampled texts if empty.")
_GROUPS = flags.DEFINE_integer("groups", 60, "Prompts to compare continuations of.")
_ROWS = 10


def _truthfulqa(path: str) -> list[tuple[str, list[str]]]:
  with open(path, newline="", encoding="utf-8") as file:
    rows = list(csv.DictReader(file))[: _GROUPS.value]
  split = lambda text: [part.strip() for part in text.split(";") if part.strip()]
  answers = lambda row: split(row["Correct Answers"]) + split(row["Incorrect Answers"])
  return [(f"Q: {row['Question']}\nA:", [f" {a}" for a in answers(row)[:_ROWS]]) for row in rows]


def _sampled(loaded) -> list[tuple[str, list[str]]]:
  task = find_task("demo_requests")
  records = [r for f in task.prompts for r in load_prompts(f)[: _GROUPS.value // 2]]
  session_config = SessionConfig(
    task.format,
    load_preference(task.preference),
    search_config("harmless", {}, HiddenStates()),
    max_response=24,
    batch_size=4,
  )
  session = Session(loaded, session_config, records)
  groups = []
  for queries, drawn in methods.samples(session, seed=0, samples=_ROWS):
    for query, tokens, length in zip(queries, drawn.tokens, drawn.length):
      texts = [session.decoded(query, ids[:n]) for ids, n in zip(tokens, length)]
      cuts = [max(text.rfind(end) for end in vocab.TEXT_ENDS) for text in texts]
      kept = [f" {text[: cut + 1]}" for text, cut in zip(texts, cuts) if cut > 0]
      groups.append((task.format.render(query.record.prompt), kept))
  return groups


def _hidden(loaded, prompt: str, texts: list[str], center: jax.Array) -> np.ndarray:
  """Centred mean hidden states float32[n, E] of continuations, of length one."""
  start = control.begin_ids(loaded.tokenizer) + control.plain_ids(loaded.tokenizer, prompt)
  rows = [start + encoding.encode_continuation(loaded.tokenizer, text) for text in texts]
  width = 64 * -(-max(map(len, rows)) // 64)
  tokens, positions = (
    np.zeros((len(rows), width), np.int32),
    np.full((len(rows), width), NO_POSITION),
  )
  for i, row in enumerate(rows):
    tokens[i, : len(row)], positions[i, : len(row)] = row, np.arange(len(row))
  hidden, _ = forward(
    loaded.model.graphdef, loaded.model.params, jnp.asarray(tokens), jnp.asarray(positions)
  )
  own = (positions >= len(start))[..., None]
  mean = np.asarray((hidden * own).sum(1) / own.sum(1)) - np.asarray(center)
  return mean / np.linalg.norm(mean, axis=1, keepdims=True)


def _auc(score: np.ndarray, truth: np.ndarray) -> float:
  """Chance that a similar pair scores above a dissimilar one, ties counting half."""
  order = np.argsort(np.argsort(score, kind="stable"))
  positives = truth.sum()
  if positives in (0, len(truth)):
    return float("nan")
  return float((order[truth].sum() - positives * (positives - 1) / 2) / positives / (~truth).sum())


def main() -> None:
  """Prints the agreement over all pairs of continuations of one prompt."""
  loaded, encoder = load(_MODEL.value), load_minilm(_MINILM.value)
  groups = _truthfulqa(_TEXTS.value) if _TEXTS.value else _sampled(loaded)
  prefix = jnp.asarray(loaded.tokenizer(load_preference("harmless").prefix).input_ids)
  center, _ = forward(loaded.model.graphdef, loaded.model.params, prefix, jnp.arange(len(prefix)))
  center = HiddenStates().params(center)
  own, minilm = [], []
  for prompt, texts in groups:
    if len(texts) < 2:
      continue
    a, b = _hidden(loaded, prompt, texts, center), encoder.embed([t.strip() for t in texts])
    for i, j in itertools.combinations(range(len(texts)), 2):
      own.append(a[i] @ a[j])
      minilm.append(b[i] @ b[j])
  ours, theirs = np.array(own), np.array(minilm)
  similar = theirs >= 0.95
  print(
    f"{len(ours)} pairs of {len(groups)} prompts; {similar.sum()} similar by MiniLM (0.95 or more)"
  )
  print(
    f"correlation {np.corrcoef(ours, theirs)[0, 1]:.3f}, AUC for 'similar' {_auc(ours, similar):.3f}"
  )
  for threshold in (0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999):
    found = ours >= threshold
    both = (found & similar).sum()
    print(
      f"threshold {threshold}: found {found.sum()}, precision {both / max(found.sum(), 1):.2f},"
      f" recall {both / max(similar.sum(), 1):.2f}, agreement {(found == similar).mean():.3f}"
    )


if __name__ == "__main__":
  cli.run(main)
