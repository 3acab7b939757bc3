"""The LLaMA decoder as a pure function of parameters, tokens and context (docs/architecture.md, section 4).

It reads context keys and values and returns only those of the new tokens; the caller stores them.
Layers are stacked on a leading axis and run by one `lax.scan`, in which the context is an input and
never an output, so that no step rewrites it.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from rain_jax.models import attention
from rain_jax.models.attention import KV, Segment
from rain_jax.models.config import ModelConfig
from rain_jax.models.modules import Linear, Norm, Table

Params = Mapping[str, Any]
"""Nested dict of arrays, the parameters of a `Llama`."""


class Layers(nnx.Module):
  """The decoder layers: parameters stacked on axis 0, arithmetic of any one of them."""

  def __init__(self, config: ModelConfig, *, param_dtype: Any, rngs: nnx.Rngs):
    depth = config.num_layers
    embed = {"embed": config.hidden_size}
    heads = {"heads": config.num_heads, "head": config.head_size}
    kv_heads = {"kv_heads": config.num_kv_heads, "head": config.head_size}
    mlp = {"mlp": config.intermediate_size}

    def linear(inputs: Mapping[str, int], outputs: Mapping[str, int], bias: bool) -> Linear:
      return Linear(depth, inputs, outputs, bias=bias, param_dtype=param_dtype, rngs=rngs)

    def norm(axes: Mapping[str, int]) -> Norm:
      return Norm(
        {"layers": depth, **axes}, config.rms_norm_eps, param_dtype=param_dtype, rngs=rngs
      )

    self.attention_norm = norm(embed)
    self.q = linear(embed, heads, config.attention_bias)
    self.k = linear(embed, kv_heads, config.attention_bias)
    self.v = linear(embed, kv_heads, config.attention_bias)
    self.o = linear(heads, embed, config.attention_output_bias)
    self.q_norm = norm({"head": config.head_size}) if config.qk_norm else None
    self.k_norm = norm({"head": config.head_size}) if config.qk_norm else None
    self.mlp_norm = norm(embed)
    self.gate = linear(embed, mlp, config.mlp_bias)
    self.up = linear(embed, mlp, config.mlp_bias)
    self.down = linear(mlp, embed, config.mlp_bias)

  def __call__(
    self,
    x: jax.Array,
    angles: tuple[jax.Array, jax.Array],
    context: Sequence[tuple[jax.Array, jax.Array]],
    masks: Sequence[jax.Array],
    used: Sequence[jax.Array | None],
    transposed: bool = False,
  ) -> tuple[jax.Array, jax.Array, jax.Array]:
    """One layer, for parameters without the leading axis.

    Args:
      x: [*batch, T, hidden].
      angles: cosines and sines, float32 [*batch, T, D / 2].
      context: keys and values of each segment, [*prefix, H, S, D].
      masks: bool [*batch, T, S] for each segment, and last [*batch, T, T] for the new tokens.
      used: int32 [] slots of each segment that may be filled, or None; last None.
      transposed: how the matrices lie, see `unstack`.

    Returns:
      x after the layer, and the new tokens' keys and values [*batch, H, T, D].
    """
    y = self.attention_norm(x)
    query, keys, values = (part(y, transposed) for part in (self.q, self.k, self.v))
    if self.q_norm is not None and self.k_norm is not None:
      query, keys = self.q_norm(query), self.k_norm(keys)
    query = attention.rotate(query, *angles) * query.shape[-1] ** -0.5
    keys = attention.rotate(keys, *angles)
    query, keys, values = (jnp.swapaxes(a.astype(x.dtype), -3, -2) for a in (query, keys, values))
    mixed = attention.attend(query, [*context, (keys, values)], masks, used)
    x = x + self.o(jnp.swapaxes(mixed, -3, -2), transposed).astype(x.dtype)
    y = self.mlp_norm(x)
    gate, up = self.gate(y, transposed), self.up(y, transposed)
    y = (jax.nn.silu(gate) * up).astype(x.dtype)
    return x + self.down(y, transposed).astype(x.dtype), keys, values


def _supported(what: str, dtype: Any, names: Sequence[str]) -> jnp.dtype:
  if jnp.dtype(dtype).name not in names:
    name, expected = jnp.dtype(dtype).name, " or ".join(names)
    raise ValueError(f"{what} = {name} is not supported, expected {expected}")
  return jnp.dtype(dtype)


class Llama(nnx.Module):
  """A decoder of the LLaMA family; see `forward` and `unembed` for its two uses."""

  def __init__(
    self,
    config: ModelConfig,
    *,
    rngs: nnx.Rngs,
    param_dtype: Any = jnp.float32,
    compute_dtype: Any = jnp.float32,
  ):
    self.config = config
    self.compute_dtype = _supported("compute_dtype", compute_dtype, ("float32", "bfloat16"))
    param_dtype = _supported("param_dtype", param_dtype, ("float32", "bfloat16", "int8"))
    table = functools.partial(
      Table, config.vocab_size, config.hidden_size, param_dtype=param_dtype, rngs=rngs
    )
    self.embedding = table()
    self.layers = Layers(config, param_dtype=param_dtype, rngs=rngs)
    self.final_norm = Norm(
      {"embed": config.hidden_size}, config.rms_norm_eps, param_dtype=param_dtype, rngs=rngs
    )
    self.head = None if config.tie_embeddings else table()

  def __call__(
    self,
    tokens: jax.Array,
    positions: jax.Array,
    segments: Sequence[Segment] = (),
    mask: jax.Array | None = None,
    unstacked: Sequence[Any] | None = None,
    transposed: bool = False,
  ) -> tuple[jax.Array, KV]:
    """See `forward`; `unstacked` are the parameters of each layer, in place of its own."""
    config = self.config
    segments = [segment for segment in segments if segment.positions.shape[-1]]
    x = self.embedding.rows(tokens, self.compute_dtype)
    angles = _angles(config, positions)
    key_positions = [segment.positions for segment in segments] + [positions]
    masks = [attention.visible(positions, keys) for keys in key_positions]
    if mask is not None:
      masks[-1] &= mask
    context = [(segment.keys, segment.values) for segment in segments]
    used = [segment.used for segment in segments] + [None]
    windows = None
    if config.sliding_window is not None:
      unlimited = jnp.iinfo(jnp.int32).max
      windows = jnp.where(jnp.array(config.sliding_layers), config.sliding_window, unlimited)
    graphdef, stacked = nnx.split(self.layers)

    def step(x, layer):
      params, context, window = layer
      seen = masks
      if window is not None:
        seen = [
          m & attention.within(positions, keys, window)
          for m, keys in zip(masks, key_positions, strict=True)
        ]
      x, keys, values = nnx.merge(graphdef, params)(x, angles, context, seen, used, transposed)
      return x, KV(keys, values)

    if unstacked is None:
      x, new = lax.scan(step, x, (stacked, context, windows))
      return self.final_norm(x), new
    parts = []
    for number, params in enumerate(unstacked):
      x, kv = step(x, (params, *jax.tree.map(lambda a: a[number], (context, windows))))
      parts.append(kv)
    return self.final_norm(x), jax.tree.map(lambda *layers: jnp.stack(layers), *parts)

  def logits(self, hidden: jax.Array, unembedding: jax.Array | None = None) -> jax.Array:
    """See `unembed`; `unembedding` is the table of `Table.logits`, transposed."""
    return (self.embedding if self.head is None else self.head).logits(hidden, unembedding)


def _angles(config: ModelConfig, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Cosines and sines of the rotary angles, float32 [*batch, T, D / 2]."""
  half = config.head_size // 2
  frequencies = config.rope_theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
  if (scaling := config.rope_scaling) is not None:
    stretched = frequencies / scaling.factor
    if scaling.kind == "linear":
      frequencies = stretched
    elif scaling.kind == "factors":
      frequencies = stretched / jnp.asarray(scaling.factors, jnp.float32)
    else:
      # Turns that a frequency makes over the trained context decide how much of it is kept.
      turns = scaling.original_max_position * frequencies / (2 * math.pi)
      low, high = scaling.low_freq_factor, scaling.high_freq_factor
      keep = jnp.clip((turns - low) / (high - low), 0, 1)
      frequencies = keep * frequencies + (1 - keep) * stretched
  angles = positions[..., None].astype(jnp.float32) * frequencies
  return jnp.cos(angles), jnp.sin(angles)


def forward(
  graphdef: nnx.GraphDef,
  params: Params,
  tokens: jax.Array,
  positions: jax.Array,
  segments: Sequence[Segment] = (),
  mask: jax.Array | None = None,
) -> tuple[jax.Array, KV]:
  """Reads new tokens after their context; pure, to be jitted by the caller (docs/architecture.md, section 4).

  A key is visible when its slot is filled, its position is not after the query's, and it lies
  within the layer's sliding window if there is one.

  Args:
    graphdef: structure of the model, static; from `Model`.
    params: its parameters.
    tokens: int32 [*batch, T], `batch` of any rank; or float [*batch, T, vocab], mixtures of tokens,
      for gradients by token.
    positions: int32 [*batch, T], absolute; `NO_POSITION` marks padding, whose outputs are finite
      and meaningless.
    segments: context that is read and left as it is; see `Segment`.
    mask: bool [*batch, T, T] or None; if given, new token t sees new token s only where mask[t, s].
      Needed when the new tokens are not one text, such as two suffixes of one context.

  Returns:
    hidden: [*batch, T, hidden] after the final norm, in the compute dtype.
    new: keys and values of the new tokens, each [num_layers, *batch, H, T, D].
  """
  module, layers, unembedding = _merged(graphdef, params)
  transposed = layers is not None and unembedding is None
  return module(tokens, positions, segments, mask, layers, transposed)


def unembed(graphdef: nnx.GraphDef, params: Params, hidden: jax.Array) -> jax.Array:
  """Next-token logits, float32 [..., vocab], of hidden [..., hidden] that `forward` returned."""
  module, _, unembedding = _merged(graphdef, params)
  return module.logits(hidden, unembedding)


def _merged(graphdef, params) -> tuple[Llama, tuple[Params, ...] | None, jax.Array | None]:
  """The module, and what `unstack` made of its layers and of the table after them, if it did."""
  layers = params["layers"]
  if not isinstance(layers, tuple):
    return nnx.merge(graphdef, params), None, None
  own = {name: value for name, value in params.items() if name != "unembedding"}
  unembedding = params.get("unembedding")
  if unembedding is not None and "head" in own:
    own["head"] = {**own["head"], "weight": unembedding.T}  # which nothing reads
  return nnx.merge(graphdef, {**own, "layers": layers[0]}), layers, unembedding


def _turned(name: str, part: Params) -> Params:
  """Parameters of one module of a layer with its matrix as outputs x inputs."""
  if "weight" not in part:
    return part
  count = 2 if name == "o" else 1  # axes of its inputs
  return {**part, "weight": jnp.moveaxis(part["weight"], range(count), range(-count, 0))}


def unstack(params: Params, consume: bool = False, transposed: bool = False) -> Params:
  """The parameters with a tuple of one tree per layer in place of stacked layers.

  `forward` then has no loop over layers: it takes longer to compile, but a loop copies every weight
  that it takes out of a stack, on CPUs and GPUs at least, and reading weights is most of its time.
  Parameters that are so already are left alone.

  All matrices lie the same way. As inputs x outputs, a CPU reads small ones fastest; the table of the
  logits is transposed for it, and as `unembedding` takes the place of the head's, or stands beside
  the embedding that it is made from. Large ones it reads faster as outputs x inputs.

  Args:
    params: parameters of a model.
    consume: delete what is taken apart, so that the weights are never there twice.
    transposed: how matrices shall lie.
  """
  layers = params["layers"]
  if isinstance(layers, tuple):
    return params
  names, parts = list(layers), []
  for name in names:
    depth = jax.tree.leaves(layers[name])[0].shape[0]
    each = [jax.tree.map(lambda stack: stack[number], layers[name]) for number in range(depth)]
    parts.append([_turned(name, one) for one in each] if transposed else each)
    if consume:
      jax.block_until_ready(parts[-1])
      jax.tree.map(lambda stack: stack.delete(), layers[name])
  apart = {**params, "layers": tuple(dict(zip(names, one)) for one in zip(*parts))}
  if transposed:
    return apart
  if "head" not in params:
    return {**apart, "unembedding": params["embedding"]["weight"].T}
  apart["head"] = dict(params["head"])
  table = apart["head"].pop("weight")
  apart["unembedding"] = table.T
  if consume:
    jax.block_until_ready(apart["unembedding"])
    table.delete()
  return apart


@dataclasses.dataclass(frozen=True)
class Model:
  """A language model taken apart once: static structure and a pytree of parameters."""

  config: ModelConfig
  graphdef: nnx.GraphDef
  params: Params


def abstract_model(
  config: ModelConfig, *, param_dtype: Any = jnp.float32, compute_dtype: Any = jnp.float32
) -> Model:
  """The model with shapes and dtypes in place of parameters; costs no memory at any size."""
  module = nnx.eval_shape(
    lambda: Llama(config, rngs=nnx.Rngs(0), param_dtype=param_dtype, compute_dtype=compute_dtype)
  )
  graphdef, state = nnx.split(module)
  return Model(config, graphdef, nnx.to_pure_dict(state))


def init_model(
  config: ModelConfig,
  key: jax.Array,
  *,
  param_dtype: Any = jnp.float32,
  compute_dtype: Any = jnp.float32,
) -> Model:
  """The model with random parameters, float32 or bfloat16."""
  dtypes = dict(param_dtype=param_dtype, compute_dtype=compute_dtype)

  def init(key):
    return nnx.to_pure_dict(nnx.split(Llama(config, rngs=nnx.Rngs(key), **dtypes))[1])

  return Model(config, abstract_model(config, **dtypes).graphdef, jax.jit(init)(key))
