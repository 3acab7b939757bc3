"""Models of any shape with prompts, ready to be measured.

Shapes without a checkpoint get random weights and a synthetic vocabulary, so that no
files are needed.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from rain_jax import tasks
from rain_jax.methods.session import Query, Session, SessionConfig
from rain_jax.models import Model, ModelConfig, init_model
from rain_jax.models.llama import abstract_model
from rain_jax.models.loading import DTYPES, laid_out, load
from rain_jax.models.sharding import AnyMesh
from rain_jax.policy.embedders import HiddenStates
from rain_jax.policy.language_model import LanguageModel
from rain_jax.policy.params import Override, Params, make_params
from rain_jax.policy.prompts import Prompt, padded
from rain_jax.preferences import CompiledPreference, load_preference
from rain_jax.tasks import Record
from rain_jax.text import vocab
from rain_jax.text.formats import DIALOGUE
from rain_jax.types import Array, DataError, SearchConfig


def _llama(vocab_size, hidden, mlp, layers, heads, kv_heads, tie=False) -> ModelConfig:
  return ModelConfig(
    vocab_size, hidden, mlp, layers, heads, kv_heads, hidden // heads, tie_embeddings=tie
  )


SHAPES = {
  "smallest": _llama(1024, 32, 48, 1, 2, 2),  # to count what searches do, at no cost
  "demo_shape": _llama(1400, 128, 384, 4, 4, 2, tie=True),
  "125m": _llama(32000, 768, 2048, 12, 12, 12),
  "1b": _llama(128256, 2048, 8192, 16, 32, 8, tie=True),  # LLaMA 3.2
  "7b": _llama(32000, 4096, 11008, 32, 32, 32),  # LLaMA 1 and 2
  "8b": _llama(128256, 4096, 14336, 32, 32, 8),  # LLaMA 3
  "13b": _llama(32000, 5120, 13824, 40, 40, 40),
  "70b": _llama(128256, 8192, 28672, 80, 64, 8),  # LLaMA 3
}
"""Shapes that get random weights; "demo" is the trained checkpoint of the package."""


@dataclasses.dataclass(frozen=True)
class Workload:
  """What is asked of every model.

  Attributes:
    prompt: tokens of a prompt (synthetic subjects; the demo's prompts are its own).
    response: tokens a response is limited to.
    verdict_prefix: tokens of the verdict's fixed prefix (synthetic subjects).
    verdict_suffix: tokens of the question after a text, per reading.
    text_end_share: share of the synthetic vocabulary that ends a text; a rollout is
      about 1 / share tokens long.
  """

  prompt: int = 128
  response: int = 64
  verdict_prefix: int = 700
  verdict_suffix: int = 24
  text_end_share: float = 1 / 12


@dataclasses.dataclass(frozen=True)
class Subject:
  """A model with prompts, ready to be measured.

  Attributes:
    name: of the model.
    dtype: a name of `loading.DTYPES`.
    lm: the static part; `replace` its search and verdicts to vary them.
    params: from `policy.make_params`.
    proposing: token ids of each prompt, after which responses are generated.
    evaluating: token ids of the same conversations as the verdict reads them.
    ends: the prompts end in a text end.
  """

  name: str
  dtype: str
  lm: LanguageModel
  params: Mapping[str, Any]
  proposing: tuple[tuple[int, ...], ...]
  evaluating: tuple[tuple[int, ...], ...]
  ends: bool

  def prompts(self, side: str, batch: int) -> Prompt:
    """The first `batch` prompts of a side, over again from the first if they run out."""
    ids = [getattr(self, side)[i % len(self.proposing)] for i in range(batch)]
    return padded(ids, [self.ends] * batch, self.lm.max_prompt)


@dataclasses.dataclass(frozen=True)
class _Query(Query):
  """A prompt of a batch, whose key depends on its place alone.

  Attributes:
    place: in the batch.
    batch: prompts in all.
  """

  place: int = 0
  batch: int = 1

  def key(self, seed: int) -> jax.Array:
    return keys_of(seed, self.batch)[self.place]


def keys_of(seed: int, batch: int) -> Array:
  """[B] random keys of a measured call."""
  return jax.random.split(jax.random.key(seed), batch)


class MeasuredSession(Session):
  """A session of a subject: the library's methods answer its prompts, which need no tokenizer.

  Args:
    subject: the model with its prompts.
    batch: prompts side by side.
    search: hyperparameters of the search; None takes the subject's.
    override: of the verdicts.
  """

  mesh = None
  ahead = None  # a benchmark times its compilations

  # What `Session` reads out of texts by a tokenizer is there already.
  def __init__(
    self,
    subject: Subject,
    batch: int,
    search: SearchConfig | None = None,
    override: Override = Override(),
  ):
    lm = dataclasses.replace(subject.lm, search=search or subject.lm.search)
    self.lm, self.preference, self.max_prompt = lm, lm.preference, lm.max_prompt
    self.params = cast(Params, {**subject.params, "override": override})
    unused: Any = None  # the preference, which makes tokens of texts
    self.config = SessionConfig(
      DIALOGUE, unused, lm.search, lm.max_prompt, lm.max_response, batch_size=batch
    )
    side = lambda ids, i: list(ids[i % len(ids)])
    self.queries = [
      _Query(
        Record(str(i), ""),
        side(subject.proposing, i),
        side(subject.evaluating, i),
        subject.ends,
        place=i,
        batch=batch,
      )
      for i in range(batch)
    ]
    self.rejected = []


def find_subject(name: str, dtype: str, workload: Workload, search: SearchConfig) -> Subject:
  """The subject of a name: "demo", or one of `SHAPES` with random weights.

  Raises:
    DataError: no such model or dtype.
    CheckpointError: the demo's checkpoint cannot be read.
  """
  if dtype not in DTYPES:
    raise DataError(f"dtype={dtype!r}: expected one of {', '.join(DTYPES)}.")
  if name == "demo":
    return _demo(dtype, workload, search)
  model, lm = abstract_subject(shape_of(name), dtype, workload, search)
  compute = model_dtype(dtype)
  if dtype == "int8":
    # Int8 matrices are not drawn at random. Counts depend on the verdicts: force them.
    params = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), model.params)
    model = dataclasses.replace(model, params=params)
  else:
    model = init_model(
      model.config, jax.random.key(0), param_dtype=DTYPES[dtype], compute_dtype=compute
    )
  params = laid_out(model).params
  tables = synthetic_tables(model.config.vocab_size, workload.text_end_share)
  draw = np.random.default_rng(0).integers
  prompts = tuple(
    tuple(draw(0, model.config.vocab_size, workload.prompt).tolist()) for _ in range(16)
  )
  return Subject(name, dtype, lm, make_params(params, tables, lm, []), prompts, prompts, False)


def model_dtype(dtype: str) -> Any:
  """The dtype of arithmetic, and of keys and values, with weights of a named dtype."""
  return jnp.bfloat16 if dtype == "int8" else DTYPES[dtype]


def shape_of(name: str) -> ModelConfig:
  """One of `SHAPES`.

  Raises:
    DataError: no such shape.
  """
  if name not in SHAPES:
    raise DataError(f"models: unknown {name!r}; expected some of {', '.join(SHAPES)}.")
  return SHAPES[name]


def abstract_subject(
  shape: ModelConfig,
  dtype: str,
  workload: Workload,
  search: SearchConfig,
  mesh: AnyMesh | None = None,
) -> tuple[Model, LanguageModel]:
  """Model, laid out as `loading` would for a mesh, and static part of a shape, without a single weight."""
  model = abstract_model(shape, param_dtype=DTYPES[dtype], compute_dtype=model_dtype(dtype))
  model = laid_out(model, mesh)
  suffix = tuple(range(2, 2 + workload.verdict_suffix))
  preference = CompiledPreference(
    prefix_ids=(1,) * workload.verdict_prefix,
    suffix_ids=(suffix, suffix[::-1]),
    good_ids=((3,), (4,)),
    bad_ids=((4,), (3,)),
    cut=False,
    conversation="",
    tokenizer=None,
  )
  lm = LanguageModel(
    graphdef=model.graphdef,
    config=model.config,
    search=search,
    preference=preference,
    embedder=HiddenStates(),
    max_prompt=32 * math.ceil(workload.prompt / 32),
    max_response=workload.response,
  )
  return model, lm


def _demo(dtype: str, workload: Workload, search: SearchConfig) -> Subject:
  """The trained checkpoint with its held-out requests."""
  task = tasks.find_task("demo_requests")
  files = [tasks.load_prompts(path, "") for path in task.prompts]
  records = [record for pair in zip(*files) for record in pair][:16]
  session_config = SessionConfig(
    task.format,
    load_preference(task.preference),
    search,
    max_response=workload.response,
  )
  session = Session(load("demo", dtype), session_config, records)
  of = lambda side: tuple(tuple(getattr(q, side)) for q in session.queries)
  ends = session.queries[0].ends  # of the format, the same for all
  return Subject("demo", dtype, session.lm, session.params, of("proposing"), of("evaluating"), ends)


def synthetic_tables(vocab_size: int, text_end_share: float) -> vocab.TokenTables:
  """A vocabulary without text: each token has a byte and a hash of its own, no token stops.

  Every (1 / text_end_share)-th token ends a text.
  """
  token = np.arange(vocab_size)
  mixed = (token[:, None] * np.array([40503, 60493]) + 12345) % ((1 << 31) - 1)
  return vocab.TokenTables(
    transitions=jnp.zeros((2, vocab_size), jnp.int16),
    before=jnp.zeros((2, vocab_size), jnp.uint8),
    kind=jnp.full(vocab_size, 2, jnp.int8),
    byte=jnp.zeros(vocab_size, jnp.uint8),
    size=jnp.ones(vocab_size, jnp.int32),
    ends=jnp.asarray(token % max(1, round(1 / text_end_share)) == 0),
    full_stop=jnp.zeros(vocab_size, bool),
    hash=jnp.asarray(mixed, jnp.uint32),
    shift=jnp.full((vocab_size, 2), 257, jnp.uint32),
  )


def abstract_tables(model: Model) -> vocab.TokenTables:
  """The tables of such a vocabulary for a model, without their contents."""
  return jax.eval_shape(lambda: synthetic_tables(model.config.vocab_size, 0.1))
