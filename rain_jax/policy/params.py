"""Everything that the language model reads and never changes."""

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypedDict

import flax
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rain_jax.models import KV, forward
from rain_jax.text.vocab import TokenTables
from rain_jax.types import Array

if TYPE_CHECKING:
  from rain_jax.policy.language_model import LanguageModel

Side = Literal["proposing", "evaluating"]
"""Of the two caches: as the response is generated, or as the verdict reads it."""


class Override(flax.struct.PyTreeNode):
  """What becomes of the model's verdicts, by uniforms drawn from the judged text's hash.

  The model reads every text all the same; arrays, so that one program serves all values.

  Attributes:
    forced_good: float32[] share of texts whose verdict is +1, the others' being -1
      (benchmarks); negative leaves the model its own.
    flipped: float32[] share of texts whose verdict changes its sign (ablation of
      self-evaluation).
  """

  forced_good: Array | float = -1.0
  flipped: Array | float = 0.0

  def apply(self, value: Array, text_hash: Array) -> Array:
    """The verdicts float32[...] that count, for `value` and uint32[..., 2]."""
    uniforms = (text_hash % 65536).astype(jnp.float32) / 65536
    forced = jnp.where(uniforms[..., 0] < self.forced_good, 1.0, -1.0)
    value = jnp.where(self.forced_good < 0, value, forced)
    return jnp.where(uniforms[..., 1] < self.flipped, -value, value)


class Correction(flax.struct.PyTreeNode):
  """What takes a model's bias out of its answers; arrays, so that one program serves all values.

  Attributes:
    offset: float32[readings] how far a reading's good label has to lead, in log-odds.
    scale: float32[readings], above 0; the log-odds of being good per log-odds of lead.
  """

  offset: Array
  scale: Array


class Params(TypedDict):
  """What `LanguageModel` is given as `params`; made by `make_params`.

  Keys:
    model: parameters of the model.
    verdict_model: of the model that gives the verdicts; None for the model itself.
    tables: of its tokenizer's vocabulary.
    proposing_prefix: keys and values, without batch axes, of what stands before every prompt.
    evaluating_prefix: of what stands before every text that is judged.
    override: what becomes of the model's verdicts.
    correction: of its answers; None takes them as they are.
    embedder: the embedder's own arrays.
  """

  model: Any
  verdict_model: Any
  tables: TokenTables
  proposing_prefix: KV
  evaluating_prefix: KV
  override: Override
  correction: Correction | None
  embedder: Any


def make_params(
  model_params: Any,
  tables: TokenTables,
  lm: "LanguageModel",
  proposing_ids: Sequence[int],
  override: Override = Override(),
  correction: Correction | None = None,
  mesh: Mesh | None = None,
  verdict_params: Any = None,
) -> Params:
  """Everything that `LanguageModel` reads and never changes, prefixes computed once.

  Args:
    model_params: parameters of the model.
    tables: of its tokenizer.
    lm: the static part.
    proposing_ids: token ids of the shared prefix before every prompt, perhaps none.
    override: what becomes of the model's verdicts.
    correction: of its answers; None takes them as they are.
    mesh: over which the parameters are spread; what is made here goes there, too.
    verdict_params: parameters of `lm.verdict`, if there is one.

  Returns:
    See `Params`. Of an abstract model, whose parameters are shapes, it is shapes; nothing is computed.
    If these have shardings, so have the shapes of what is computed from the parameters, and the rest
    are arrays: a program compiled for them can be called with what the weights give later.
  """
  weight, *_ = jax.tree.leaves(model_params)
  abstract = isinstance(weight, jax.ShapeDtypeStruct)
  if abstract:
    make = lambda model, verdict: make_params(
      model, tables, lm, proposing_ids, override, correction, verdict_params=verdict
    )
    made = jax.eval_shape(make, model_params, verdict_params)
    if weight.sharding is None:
      return made
  if mesh is not None:
    tables = jax.device_put(tables, NamedSharding(mesh, PartitionSpec()))
  override = jax.tree.map(jnp.float32, override)

  def places(shapes: Any) -> Any:
    if mesh is None:
      return jax.tree.map(lambda _: weight.sharding, shapes)
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), lm.head_specs(shapes, mesh))

  def whole(proposing_prefix: KV, evaluating_prefix: KV, embedder: Any) -> Params:
    return Params(
      model=model_params,
      verdict_model=verdict_params,
      tables=tables,
      proposing_prefix=proposing_prefix,
      evaluating_prefix=evaluating_prefix,
      embedder=embedder,
      override=override,
      correction=correction,
    )

  if abstract:
    shapes = made["proposing_prefix"], made["evaluating_prefix"], made["embedder"]
    placed = lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)
    return whole(*jax.tree.map(placed, shapes, places(shapes)))

  spread = None if mesh is None else places
  own = functools.partial(_read_prefix, lm.graphdef, model_params, shardings_of=spread)
  proposing_hidden, proposing = own(proposing_ids)
  judged = lm.preference.prefix_ids
  evaluating_hidden, evaluating = own(
    lm.translation.prefix_ids(judged) if lm.translation else judged
  )
  reference = jnp.concatenate([proposing_hidden, evaluating_hidden])
  if lm.verdict is not None:  # its hidden states are no reference for the model's
    _, evaluating = _read_prefix(lm.verdict.graphdef, verdict_params, judged, shardings_of=spread)
  rest = proposing, evaluating, lm.embedder.params(reference)
  if not isinstance(weight, jax.core.Tracer):
    rest = jax.device_put(rest, places(rest))
  return whole(*rest)


def _read_prefix(
  graphdef: nnx.GraphDef,
  params: Any,
  ids: Sequence[int],
  shardings_of: Callable[[Any], Any] | None,
) -> tuple[Array, KV]:
  """Hidden states float32[P, H] of the P tokens `ids`, perhaps none, and their keys and values."""
  # One token stands in for an empty prefix, and is cut away again: only its shapes are needed.
  tokens, length = np.asarray(ids or [0], np.int32), len(ids)

  def read(params: Any) -> tuple[Array, KV]:
    hidden, kv = forward(graphdef, params, jnp.asarray(tokens), jnp.arange(len(tokens)))
    return hidden[:length].astype(jnp.float32), jax.tree.map(lambda a: a[..., :length, :], kv)

  shapes = jax.eval_shape(read, params)
  out = None if shardings_of is None else shardings_of(shapes)
  if not ids:
    empty = lambda params: jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)
    return jax.jit(empty, out_shardings=out)(params)
  return jax.jit(read, out_shardings=out)(params)
