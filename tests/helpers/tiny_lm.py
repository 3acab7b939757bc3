"""A tiny random model as `LanguageModel`: its prompts, its searches, its texts read whole."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from rain_jax import decode
from rain_jax.models import forward, init_model, unembed
from rain_jax.models import testing as models
from rain_jax.policy import context, language_model
from rain_jax.policy.embedders import HiddenStates
from rain_jax.policy.params import make_params
from rain_jax.policy.prompts import Prompt
from rain_jax.preferences import CompiledPreference
from rain_jax.text import vocab

R = 24
PROMPTS = [[0, 50, 51, 52], [0, 60, 61, 62, 63, 64, 65], [0, 70], [0, 80, 81], [0, 9, 8, 7, 6]]
JUDGED = [[30, 31], [33, 34, 35, 36, 37], [38], [39, 40], [41, 42, 43]]


def make(
  tokenizer,
  search,
  readings=2,
  cut=False,
  prefix=(),
  cls=language_model.LanguageModel,
  judged=False,
  **more,
):
  """A tiny random model as `LanguageModel`, with its params.

  Where it is `judged`, a model of other shapes and of the same vocabulary gives the verdicts.
  """
  model = models.random_model("llama2")
  config = dataclasses.replace(model.config, vocab_size=len(tokenizer), eos_ids=(1,))
  model = init_model(config, jax.random.key(3))
  labels = [(tokenizer.convert_tokens_to_ids("A"),), (tokenizer.convert_tokens_to_ids("B"),)]
  suffixes = [(40, 41, 42), (43, 44)][:readings]
  preference = CompiledPreference(
    **{f.name: None for f in dataclasses.fields(CompiledPreference)}
    | dict(
      prefix_ids=(0, 20, 21, 22),
      suffix_ids=tuple(suffixes),
      good_ids=tuple(labels[:readings]),
      bad_ids=tuple(labels[::-1][:readings]),
      cut=cut,
    )
  )
  other = None
  if judged:
    sizes = dict(num_layers=2, hidden_size=48, num_heads=3, num_kv_heads=1, head_size=16)
    other = init_model(dataclasses.replace(config, **sizes), jax.random.key(4))
    more["verdict"] = language_model.VerdictModel(other.graphdef, other.config)
  lm = cls(
    model.graphdef,
    config,
    search,
    preference,
    HiddenStates(),
    max_prompt=12,
    max_response=R,
    read_chunk=8,
    **more,
  )
  tables = vocab.build_tables(tokenizer, ["Human:"], vocab_size=config.vocab_size)
  others = other.params if other else None
  return lm, make_params(model.params, tables, lm, list(prefix), verdict_params=others)


def as_prompt(ids):
  tokens = np.zeros(12, np.int32)
  tokens[: len(ids)] = ids
  return Prompt(tokens, np.int32(len(ids)), np.bool_(False))


def search_all(lm, params, batch=2, prompts=range(len(PROMPTS)), seed=0, broken=()):
  """All prompts through `decode.serve`; {prompt: Result} and the last state.

  The model's caches hold no numbers after the prompts that are `broken`.
  """
  state = lm.empty_slots(batch, params)
  begin = jax.jit(lm.start)

  def start(state, fresh):
    for slot, number in fresh.items():
      one, two = as_prompt(PROMPTS[number]), as_prompt(JUDGED[number])
      model = begin(params, state.model, slot, one, two)
      if number in broken:
        context = jax.tree.map(lambda a: a.at[:, slot].set(jnp.nan), model.proposing.context)
        model = model.replace(proposing=model.proposing.replace(context=context))
      state = state.replace(model=model)
    return state

  items = [(n, jax.random.fold_in(jax.random.key(seed), n), n) for n in prompts]
  results, usage = {}, {}
  for result, state in decode.serve(state, lm, params, lm.search, items, start):
    results[result.index] = result
    usage[result.index] = jax.tree.map(
      lambda a: np.asarray(a)[result.slot] if a.ndim and a.shape[0] == batch else np.asarray(a),
      state.model.usage,
    )
  return results, usage, state


def padded_reader(lm, params, size=96, side="proposing"):
  """`read_whole` for texts of any length with one compilation, by the model of a side."""
  model = context.reader(lm, params, side)
  whole = jax.jit(lambda ids: forward(*model, ids, jnp.arange(size))[0])
  head = jax.jit(lambda hidden: unembed(*model, hidden))

  def read(ids):
    hidden = whole(jnp.asarray(list(ids) + [0] * (size - len(ids)), jnp.int32))[: len(ids)]
    return np.asarray(hidden, np.float64), np.asarray(head(hidden), np.float64)

  return read
