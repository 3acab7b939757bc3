"""The LLaMA decoder as a pure function of parameters, tokens and context (docs/architecture.md, section 4).

It reads context keys and values and returns only those of the new tokens; the caller stores them.
Layers are stacked on a leading axis and run by one `lax.scan`, in which the context is an input and
never an output, so that no step rewrites it; or they are taken apart (`unstack`) and run one by one.
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
from jax.experimental.xla_metadata import set_xla_metadata

from rain_jax.models import attention, backend, rope
from rain_jax.models.attention import KV, Segment
from rain_jax.models.config import ModelConfig
from rain_jax.models.modules import Linear, Norm, Table

Params = Mapping[str, Any]
"""Nested dict of arrays, the parameters of a `Llama`."""


_ACTIVATIONS = {"silu": jax.nn.silu, "gelu_tanh": jax.nn.gelu}  # the latter by its tanh form


class Layers(nnx.Module):
  """The decoder layers: parameters stacked on axis 0, arithmetic of any one of them."""

  def __init__(self, config: ModelConfig, *, param_dtype: Any, rngs: nnx.Rngs):
    depth = config.num_layers
    before, after = config.norms != "after", config.norms != "before"
    embed = {"embed": config.hidden_size}
    heads = {"heads": config.num_heads, "head": config.head_size}
    kv_heads = {"kv_heads": config.num_kv_heads, "head": config.head_size}
    mlp = {"mlp": config.intermediate_size}

    def linear(inputs: Mapping[str, int], outputs: Mapping[str, int], bias: bool) -> Linear:
      return Linear(depth, inputs, outputs, bias=bias, param_dtype=param_dtype, rngs=rngs)

    def norm(axes: Mapping[str, int], there: bool) -> Norm | None:
      if not there:
        return None
      eps, offset = config.rms_norm_eps, config.norm_offset
      return Norm({"layers": depth, **axes}, eps, offset, param_dtype=param_dtype, rngs=rngs)

    self.score_scale = (config.score_size or config.head_size) ** -0.5
    self.score_cap = config.score_cap
    self.activation = _ACTIVATIONS[config.activation]
    self.attention_norm = norm(embed, before)
    self.q = linear(embed, heads, config.attention_bias)
    self.k = linear(embed, kv_heads, config.attention_bias)
    self.v = linear(embed, kv_heads, config.attention_bias)
    self.o = linear(heads, embed, config.attention_output_bias)
    one_head = {"head": config.head_size}
    self.q_norm = norm(heads if config.qk_norm_whole else one_head, config.qk_norm)
    self.k_norm = norm(kv_heads if config.qk_norm_whole else one_head, config.qk_norm)
    self.attention_post_norm = norm(embed, after)
    self.mlp_norm = norm(embed, before)
    self.gate = linear(embed, mlp, config.mlp_bias)
    self.up = linear(embed, mlp, config.mlp_bias)
    self.down = linear(mlp, embed, config.mlp_bias)
    self.mlp_post_norm = norm(embed, after)

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
    y = _normed(self.attention_norm, x)
    query, keys, values = (part(y, transposed) for part in (self.q, self.k, self.v))
    query, keys = _normed(self.q_norm, query), _normed(self.k_norm, keys)
    query = attention.rotate(query, *angles) * self.score_scale
    keys = attention.rotate(keys, *angles)
    query, keys, values = (jnp.swapaxes(a.astype(x.dtype), -3, -2) for a in (query, keys, values))
    mixed = attention.attend(query, [*context, (keys, values)], masks, used, self.score_cap)
    y = self.o(jnp.swapaxes(mixed, -3, -2), transposed).astype(x.dtype)
    x = x + _normed(self.attention_post_norm, y)
    y = _normed(self.mlp_norm, x)
    # In the compute dtype, for a GPU writes both to memory before it multiplies them.
    gate, up = (part(y, transposed).astype(x.dtype) for part in (self.gate, self.up))
    y = (self.activation(gate.astype(jnp.float32)) * up).astype(x.dtype)
    y = self.down(y, transposed).astype(x.dtype)
    return x + _normed(self.mlp_post_norm, y), keys, values


def _layer(graphdef, transposed, params, x, *others):
  """A layer of `Layers`."""
  return nnx.merge(graphdef, params)(x, *others, transposed)


# Of layers that are taken apart: those that are alike are traced and lowered once, not one by one.
_layer_once = jax.jit(_layer, static_argnums=(0, 1))


def _layer_called(*args):
  """`_layer` of layers that are taken apart; where that pays, XLA is told not to inline it."""
  found = _layer_once(*args)
  return set_xla_metadata(found, inlineable="false") if backend.calls_layers() else found


def _normed(norm: Norm | None, x: jax.Array) -> jax.Array:
  """x after a norm that some families lack."""
  return x if norm is None else norm(x)


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
    table = functools.partial(Table, embed=config.hidden_size, param_dtype=param_dtype, rngs=rngs)
    self.embedding = table(config.vocab_size)
    self.layers = Layers(config, param_dtype=param_dtype, rngs=rngs)
    self.final_norm = Norm(
      {"embed": config.hidden_size},
      config.rms_norm_eps,
      config.norm_offset,
      param_dtype=param_dtype,
      rngs=rngs,
    )
    outputs = 1 if config.scores else config.vocab_size
    self.head = None if config.tie_embeddings else table(outputs)

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
    if config.scaled_embedding:
      x = x * jnp.asarray(math.sqrt(config.hidden_size), x.dtype)
    angles, rotation = _rotations(config, positions)
    key_positions = [segment.positions for segment in segments] + [positions]
    masks = [attention.visible(positions, keys) for keys in key_positions]
    if mask is not None:
      masks[-1] &= mask
    used = [segment.used for segment in segments] + [None]
    windows = None
    if config.sliding_window is not None:
      unlimited = jnp.iinfo(jnp.int32).max
      windows = jnp.where(jnp.array(config.sliding_layers), config.sliding_window, unlimited)
    graphdef, stacked = nnx.split(self.layers)

    def step(x, layer, run=_layer):
      params, context, window, rotated = layer
      seen = masks
      turned = angles if rotated is None else jax.tree.map(lambda kinds: kinds[rotated], angles)
      if window is not None:
        seen = [
          m & attention.within(positions, keys, window)
          for m, keys in zip(masks, key_positions, strict=True)
        ]
      x, keys, values = run(graphdef, transposed, params, x, turned, context, seen, used)
      return x, KV(keys, values)

    if unstacked is None:
      context = [(segment.keys, segment.values) for segment in segments]
      x, new = lax.scan(step, x, (stacked, context, windows, rotation))
      return self.final_norm(x), new
    parts = []
    last = len(unstacked) - 1
    for number, params in enumerate(unstacked):
      window, rotated = jax.tree.map(lambda a: a[number], (windows, rotation))
      own = [segment.layer(number) for segment in segments]
      # The last one is inlined: where only keys and values are wanted, XLA leaves out its rest.
      run = _layer_called if number < last else _layer_once
      x, kv = step(x, (params, own, window, rotated), run)
      parts.append(kv)
    x = self.final_norm(x)
    if backend.stores_by_layer():
      parts = [jax.tree.map(lambda a: a[None], kv) for kv in parts]
      return x, KV(tuple(kv.keys for kv in parts), tuple(kv.values for kv in parts))
    return x, jax.tree.map(lambda *layers: jnp.stack(layers), *parts)

  def logits(self, hidden: jax.Array, unembedding: jax.Array | None = None) -> jax.Array:
    """See `unembed`; `unembedding` is the table of `Table.logits`, transposed."""
    table = self.embedding if self.head is None else self.head
    logits, cap = table.logits(hidden, unembedding), self.config.logit_cap
    return logits if cap is None else cap * jnp.tanh(logits / cap)


def _rotations(
  config: ModelConfig, positions: jax.Array
) -> tuple[tuple[jax.Array, jax.Array], jax.Array | None]:
  """Cosines and sines, float32 [*batch, T, D / 2], the same for all layers and None.

  Where layers differ each has another leading axis of kinds, and beside them comes the kind of every
  layer, int32 [layers].
  """
  kinds = [rope.angles(config.rope_theta, config.rope_scaling, config.head_size, positions)]
  kind = [0] * config.num_layers
  if config.local_rope_theta is not None:
    kinds.append(rope.angles(config.local_rope_theta, None, config.head_size, positions))
    kind = [int(sliding) for sliding in config.sliding_layers]
  if config.unrotated_layers:
    cos, sin = kinds[0]
    kinds.append((jnp.ones_like(cos), jnp.zeros_like(sin)))
    flags = zip(kind, config.unrotated_layers, strict=True)
    kind = [len(kinds) - 1 if unrotated else old for old, unrotated in flags]
  if len(kinds) == 1:
    return kinds[0], None
  cos, sin = (jnp.stack(tables) for tables in zip(*kinds, strict=True))
  return (cos, sin), jnp.array(kind, jnp.int32)


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
    new: keys and values of the new tokens, each [num_layers, *batch, H, T, D]; see `attention.AllLayers`.
  """
  module, layers, unembedding = _merged(graphdef, params)
  transposed = layers is not None and unembedding is None
  batch = positions.shape[:-1]
  ones = tuple(axis for axis, size in enumerate(batch) if size == 1 and backend.copies_for_ones())
  after_layers = tuple(axis + 1 for axis in ones)
  hidden, new = module(
    jnp.squeeze(tokens, ones),
    jnp.squeeze(positions, ones),
    [segment.without(ones) for segment in segments],
    None if mask is None else jnp.squeeze(mask, ones),
    layers,
    transposed,
  )
  new = jax.tree.map(lambda a: jnp.expand_dims(a, after_layers), new)
  return jnp.expand_dims(hidden, ones), new


def unembed(graphdef: nnx.GraphDef, params: Params, hidden: jax.Array) -> jax.Array:
  """Next-token logits, float32 [..., vocab], of hidden [..., hidden] that `forward` returned.

  Of a reward model float32 [..., 1], the score of the text so far.
  """
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


@functools.partial(jax.jit, static_argnames="turned")
def _layer_of(stack: Params, number: int, turned: str | None) -> Params:
  """A layer's parameters of a module, from the stacked ones; see `_turned`, if they have to be."""
  take = functools.partial(lax.dynamic_index_in_dim, index=number, keepdims=False)
  one = jax.tree.map(take, stack)
  return _turned(turned, one) if turned else one


def _turned(name: str, part: Params) -> Params:
  """Parameters of one module of a layer with its matrix as outputs x inputs."""
  if "weight" not in part:
    return part
  count = input_axes(name)
  return {**part, "weight": jnp.moveaxis(part["weight"], range(count), range(-count, 0))}


def input_axes(name: str) -> int:
  """How many axes of the matrix of a layer's module are inputs: its first ones, or if turned its last."""
  return 2 if name == "o" else 1


def unstack(params: Params, consume: bool = False, transposed: bool = False) -> Params:
  """The parameters with a tuple of one tree per layer in place of stacked layers.

  `forward` then has no loop over layers: it takes longer to compile, but a loop copies every weight
  that it takes out of a stack, on CPUs and GPUs at least, and reading weights is most of its time.
  Parameters that are so already are left alone.

  On a mesh every layer's parameters are split as their stack is (`sharding.shardings`): taking them
  out exchanges nothing.

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
    depth, turned = jax.tree.leaves(layers[name])[0].shape[0], name if transposed else None
    parts.append([_layer_of(layers[name], number, turned) for number in range(depth)])
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
