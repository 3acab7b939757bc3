"""A checkpoint with its tokenizer, from a name."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from rain_jax import demo
from rain_jax.models import Model, ModelConfig, arrays, backend, unstack
from rain_jax.models.arrays import nbytes
from rain_jax.models.checkpoint import fingerprint, load_model, read_config
from rain_jax.models.hf import CheckpointError, resolve
from rain_jax.models.llama import abstract_model
from rain_jax.models.sharding import AnyMesh, shardings
from rain_jax.models.tokenizer import check_tokenizer, load_tokenizer

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "int8": jnp.int8}


@dataclasses.dataclass(frozen=True)
class LoadedModel:
  """A model with its tokenizer.

  Attributes:
    model: see `rain_jax.models.Model`.
    tokenizer: of transformers, fast.
    name: what the user called it.
    fingerprint: hash of the weights, an adapter's included.
    mesh: what the weights are spread over, None for one device.
    verdict: another model, which gives the verdicts; None where the model judges itself.
    guard: where it gives verdicts, it is asked in Llama Guard's form.
  """

  model: Model
  tokenizer: Any
  name: str
  fingerprint: str
  mesh: jax.sharding.Mesh | None = None
  verdict: "LoadedModel | None" = None
  guard: bool = False

  @property
  def judging(self) -> "LoadedModel":
    """The model that gives the verdicts."""
    return self.verdict or self

  @property
  def translated(self) -> bool:
    """The verdict's model has another tokenizer, and reads texts in its own tokens."""
    if self.verdict is None:
      return False
    theirs = self.verdict.tokenizer.get_vocab()
    own = self.tokenizer.get_vocab()
    return any(theirs.get(token) != number for token, number in own.items())

  def judged_by(self, other: "LoadedModel", guard: bool = False) -> "LoadedModel":
    """The same model with its verdicts given by another, which may be asked as a `guard`."""
    return dataclasses.replace(self, verdict=dataclasses.replace(other, guard=guard))


def load(
  name: str,
  dtype: str = "float32",
  mesh_of: Callable[[ModelConfig], jax.sharding.Mesh | None] = lambda config: None,
  revision: str = "",
  adapter: str = "",
  scores: bool = False,
) -> LoadedModel:
  """Loads a bundled model, a checkpoint folder, a GGUF file or a hub repository; see `begin`."""
  return begin(name, dtype, mesh_of, revision, adapter, scores)[1]()


def begin(
  name: str,
  dtype: str = "float32",
  mesh_of: Callable[[ModelConfig], jax.sharding.Mesh | None] = lambda config: None,
  revision: str = "",
  adapter: str = "",
  scores: bool = False,
  planned_for: int | None = None,
) -> tuple[LoadedModel, Callable[[], LoadedModel]]:
  """Everything of a model but its weights, and a function that reads these.

  Programs can be compiled for the first while the second is at work.

  Args:
    name: a bundled model is one of `demo.MODELS`.
    dtype: float32 or bfloat16, or int8 for weights in 8 bits and arithmetic in bfloat16.
    mesh_of: the mesh for a model of that shape; None keeps it on the default device.
    revision: branch, tag or commit of a hub repository; "" for its main branch.
    adapter: folder or hub name of a LoRA adapter to merge, see `hf.load`; "" for none.
    scores: it has to be a reward model, see `hf.load`; otherwise a language model.
    planned_for: bytes of memory of each device of a machine that is not at hand. Weights need not
      be there then: the fingerprint is empty, and shapes have no shardings.

  Returns:
    The abstract model, with shapes in place of weights; and a function that returns the model with
    its weights, or raises CheckpointError.

  Raises:
    CheckpointError: what is wrong with the checkpoint, its tokenizer or its adapter, in one line.
    ValueError: the weights alone do not fit.
  """
  if dtype not in DTYPES:
    raise CheckpointError(f"model.dtype={dtype!r}: expected one of {', '.join(DTYPES)}.")
  folder = folder_of(name, revision)
  compute = jnp.bfloat16 if dtype == "int8" else DTYPES[dtype]
  config = read_config(folder, scores)
  mesh = mesh_of(config)
  dtypes = dict(param_dtype=DTYPES[dtype], compute_dtype=compute)
  shapes = abstract_model(config, **dtypes)
  check_weights(shapes, arrays.bytes_available() if planned_for is None else planned_for, mesh)
  tokenizer = load_tokenizer(folder)
  check_tokenizer(tokenizer, config, name)
  layout = functools.partial(laid_out, mesh=mesh)
  digest = fingerprint(folder, adapter or None) if planned_for is None else ""
  model = layout(shapes) if planned_for is not None else _placed(layout(shapes), mesh)
  begun = LoadedModel(model, tokenizer, name, digest, mesh)

  def read() -> LoadedModel:
    whole = load_model(folder, **dtypes, mesh=mesh, adapter=adapter or None, scores=scores)
    return dataclasses.replace(begun, model=layout(whole))

  return begun, read


def _placed(model: Model, mesh: jax.sharding.Mesh | None) -> Model:
  """An abstract model whose shapes have the shardings that its weights will have."""
  place = lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
  params = jax.tree.map(place, model.params, shardings(model, mesh))
  return dataclasses.replace(model, params=params)


def folder_of(name: str, revision: str = "") -> pathlib.Path:
  """The folder or GGUF file of what `load` takes, bundled or not; raises CheckpointError."""
  if name.startswith("demo:") and name not in demo.MODELS:
    bundled = ", ".join(demo.MODELS)
    raise CheckpointError(f"{name}: expected one of the bundled models: {bundled}.")
  return resolve(demo.MODELS.get(name, name), revision)


def laid_out(model: Model, mesh: AnyMesh | None = None) -> Model:
  """The model as its devices read it best: its layers taken apart, `models.unstack`, or not.

  The stacked weights are gone then. Works on abstract models, too.

  Args:
    model: with stacked layers, spread over the mesh if it has weights.
    mesh: of the devices, which may be abstract for an abstract model; None for one device.
  """
  if not backend.takes_layers_apart(model.params, mesh is not None):
    return model
  large = not backend.in_caches(model.params)
  if isinstance(jax.tree.leaves(model.params)[0], jax.ShapeDtypeStruct):
    shapes = jax.eval_shape(lambda params: unstack(params, transposed=large), model.params)
    return dataclasses.replace(model, params=shapes)
  return dataclasses.replace(model, params=unstack(model.params, True, transposed=large))


def check_weights(model: Model, available: int, mesh: AnyMesh | None = None) -> None:
  """Stops before weights are read that cannot fit.

  Args:
    model: an abstract one.
    available: bytes of a device's memory.
    mesh: of the devices; None for one.

  Raises:
    ValueError: one line that says how much is missing, and what to lower.
  """
  size = nbytes(model.params, None if mesh is None else shardings(model, mesh))
  if size > available:
    raise ValueError(
      f"{size / 2**30:.1f} GiB of weights on each device, {available / 2**30:.1f} GiB available:"
      " lower model.dtype (bfloat16, int8), raise mesh.tensor, or take a smaller model."
    )
