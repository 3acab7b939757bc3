"""The search's program from shapes alone: nothing is allocated, and no device is needed."""

import functools
from typing import Any

import jax
from jax.sharding import NamedSharding

from rain_jax import decode
from rain_jax.experiments.benchmark.subjects import abstract_tables
from rain_jax.models import Model
from rain_jax.models.sharding import AnyMesh, shardings
from rain_jax.parallel.batch_sharding import WHOLE, BatchSharding
from rain_jax.policy.language_model import LanguageModel
from rain_jax.policy.params import make_params


def lower_search(
  model: Model,
  lm: LanguageModel,
  batch: int,
  kv_dtype: Any,
  mesh: AnyMesh | None = None,
  platform: str | None = None,
) -> jax.stages.Lowered:
  """`decode.advance` for a batch, lowered.

  Args:
    model: an abstract one, from `abstract_subject` or `models.llama.abstract_model`.
    lm: the static part.
    batch: trees side by side (B).
    kv_dtype: of keys and values.
    mesh: of the devices, which may be abstract or of a topology; None for the default device.
    platform: that the program is for, such as "tpu"; None for the default device's.
  """
  params = jax.eval_shape(
    lambda p, t: make_params(p, t, lm, []), model.params, abstract_tables(model)
  )
  empty = lambda batch: decode.init(
    batch, lm.init(batch, kv_dtype), lm.search, lm.embedding_size, lm.max_response
  )
  state = jax.eval_shape(lambda: empty(batch))
  steps, sharding = jax.ShapeDtypeStruct((), "int32"), None
  if mesh is not None:
    specs = functools.partial(lm.head_specs, mesh=mesh)
    sharding = BatchSharding.of(mesh, empty, specs)
    places = jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs(params))
    params = _placed(params, {**places, "model": shardings(model, mesh)})
    state = _placed(state, sharding.shardings)
    steps = _placed(steps, NamedSharding(mesh, WHOLE))
  traced = decode.advance.trace(state, lm, params, lm.search, steps, sharding=sharding)
  return traced.lower(lowering_platforms=(platform,) if platform else None)


def _placed(shapes: Any, places: Any) -> Any:
  with_place = lambda a, place: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place)
  return jax.tree.map(with_place, shapes, places)
