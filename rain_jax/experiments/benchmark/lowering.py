"""The programs of a run from shapes alone: nothing is allocated, and no device is needed."""

import dataclasses
import functools
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

from rain_jax import decode
from rain_jax.experiments.benchmark.subjects import abstract_tables
from rain_jax.methods.rain import begin_prompts
from rain_jax.models import Model
from rain_jax.models.sharding import AnyMesh, shardings
from rain_jax.parallel.batch_sharding import ROWS, WHOLE, BatchSharding
from rain_jax.policy import prompts, whole_responses
from rain_jax.policy.language_model import LanguageModel
from rain_jax.policy.params import make_params

_LOWERED_AS = {"gpu": "cuda"}  # NVIDIA's, of the platforms that JAX lowers for


@dataclasses.dataclass(frozen=True)
class Lowering:
  """What the programs of a run are lowered for.

  Attributes:
    model: an abstract one, from `abstract_subject` or `models.llama.abstract_model`.
    lm: the static part.
    batch: prompts side by side (B), over all of the mesh.
    mesh: of the devices, which may be abstract or of a topology; None for the default device.
    platform: that the programs are for, such as "tpu"; None for the default device's. It is for
      the caller to trace them inside `backend.target`.
    device: without a mesh, the one that the programs are for; None for the default device.
  """

  model: Model
  lm: LanguageModel
  batch: int
  mesh: AnyMesh | None = None
  platform: str | None = None
  device: jax.Device | None = None

  def search(self) -> jax.stages.Lowered:
    """`decode.advance`: steps of the search."""
    state, sharding = self._state
    steps = self._placed(jax.ShapeDtypeStruct((), "int32"), WHOLE)
    return self._lowered(
      decode.advance, state, self.lm, self._params, self.lm.search, steps, sharding=sharding
    )

  def begin(self) -> jax.stages.Lowered:
    """`methods.rain.begin_prompts`: one prompt of each shard is read into both caches."""
    state, sharding = self._state
    shards = 1 if sharding is None else sharding.shards
    slot = self._placed(jax.ShapeDtypeStruct((shards,), "int32"), ROWS)
    one = self._prompts(shards)
    return self._lowered(begin_prompts, state, self.lm, self._params, slot, one, one, sharding)

  def sampling(self) -> jax.stages.Lowered:
    """`whole_responses.sample`: one response of each prompt, by vanilla decoding."""
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), self.batch))
    first = self._placed(jax.ShapeDtypeStruct((), "int32"), WHOLE)
    return self._lowered(
      whole_responses.sample,
      self.lm,
      self._params,
      self._prompts(self.batch),
      self._placed(keys, ROWS),
      first,
      1,
      self.mesh,
    )

  def _lowered(self, program: Any, *args: Any, **named: Any) -> jax.stages.Lowered:
    platforms = (_LOWERED_AS.get(self.platform, self.platform),) if self.platform else None
    return program.trace(*args, **named).lower(lowering_platforms=platforms)

  @functools.cached_property
  def _params(self) -> Any:
    tables = abstract_tables(self.model)
    make = lambda params, tables: make_params(params, tables, self.lm, [])
    params: Any = jax.eval_shape(make, self.model.params, tables)
    if self.mesh is None:
      return self._placed(params, WHOLE)
    mesh, specs = self.mesh, self.lm.head_specs(params, self.mesh)
    places = jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)
    return _with_places(params, {**places, "model": shardings(self.model, mesh)})

  @functools.cached_property
  def _state(self) -> tuple[Any, BatchSharding | None]:
    lm = self.lm
    empty = functools.partial(lm.empty_slots, params=self._params)
    state = jax.eval_shape(lambda: empty(self.batch))
    if self.mesh is None:
      return self._placed(state, WHOLE), None
    sharding = BatchSharding.of(self.mesh, empty, functools.partial(lm.head_specs, mesh=self.mesh))
    return _with_places(state, sharding.shardings), sharding

  def _prompts(self, count: int) -> Any:
    made = prompts.padded([[0]] * count, [False] * count, self.lm.max_prompt)
    return self._placed(jax.eval_shape(lambda: jax.tree.map(jax.numpy.asarray, made)), ROWS)

  def _placed(self, shapes: Any, spec: PartitionSpec) -> Any:
    place: jax.sharding.Sharding
    if self.mesh is not None:
      place = NamedSharding(self.mesh, spec)
    elif self.device is not None:
      place = SingleDeviceSharding(self.device)
    else:
      return shapes
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place), shapes)


def _with_places(shapes: Any, places: Any) -> Any:
  with_place = lambda a, place: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place)
  return jax.tree.map(with_place, shapes, places)
