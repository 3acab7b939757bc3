"""The modules that a decoder is made of: matrices, the vocabulary's table, norms.

Every weight is declared once, in the constructor of its module: logical axes with their sizes, and
from them shape, initial values, abstract tree and shardings.
"""

import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax


def _declare(
  axes: Mapping[str, int], init: nnx.Initializer, rngs: nnx.Rngs, dtype: Any
) -> nnx.Param:
  """One weight: its logical axes with their sizes, its initial values and dtype."""
  return nnx.Param(init(rngs.params(), tuple(axes.values()), dtype), axes=tuple(axes))


def _declare_matrix(
  axes: Mapping[str, int], inputs: Mapping[str, int], rngs: nnx.Rngs, dtype: Any
) -> tuple[nnx.Param, nnx.Param | None]:
  """A matrix that sums over `inputs`, and the scale of each output channel if it is int8.

  Random int8 values would be of no use, so these start at zero, to be filled by a loader.
  """
  if jnp.issubdtype(dtype, jnp.floating):
    init = nnx.initializers.normal(math.prod(inputs.values()) ** -0.5)
    return _declare(axes, init, rngs, dtype), None
  channels = {axis: size for axis, size in axes.items() if axis not in inputs}
  return (
    _declare(axes, nnx.initializers.zeros, rngs, dtype),
    _declare(channels, nnx.initializers.ones, rngs, jnp.float32),
  )


def _small_dtype(param_dtype: Any) -> Any:
  """The dtype of norms and biases: they stay float32 beside int8 matrices."""
  return param_dtype if jnp.issubdtype(param_dtype, jnp.floating) else jnp.float32


def _product(rows: jax.Array, matrix: jax.Array) -> jax.Array:
  """rows [..., inputs] times matrix [outputs, inputs] -> float32 [..., outputs].

  With two axes each, XLA reads the matrix as it lies; and, on a CPU, faster for a vector than for
  a matrix of one row.
  """
  product = functools.partial(jnp.matmul, preferred_element_type=jnp.float32)
  if math.prod(rows.shape[:-1]) == 1:
    return product(matrix, rows.reshape(-1)).reshape(*rows.shape[:-1], -1)
  return product(rows, matrix.T)


class Linear(nnx.Module):
  """Product of the trailing `inputs` axes of x with a weight [layers, *inputs, *outputs].

  A layer that `unstack` made may have it as [*outputs, *inputs], which the call has to say.
  """

  def __init__(
    self,
    layers: int,
    inputs: Mapping[str, int],
    outputs: Mapping[str, int],
    *,
    bias: bool,
    param_dtype: Any,
    rngs: nnx.Rngs,
  ):
    self.num_inputs = len(inputs)
    stack = {"layers": layers}
    self.weight, self.channel_scale = _declare_matrix(
      {**stack, **inputs, **outputs}, inputs, rngs, param_dtype
    )
    self.bias = (
      _declare({**stack, **outputs}, nnx.initializers.zeros, rngs, _small_dtype(param_dtype))
      if bias
      else None
    )

  def __call__(self, x: jax.Array, transposed: bool) -> jax.Array:
    """x [..., *inputs] -> float32 [..., *outputs], for the parameters of one layer."""
    weight = self.weight[...].astype(x.dtype)
    if transposed:
      inputs = math.prod(weight.shape[-self.num_inputs :])
      rows = x.reshape(*x.shape[: x.ndim - self.num_inputs], inputs)
      y = _product(rows, weight.reshape(-1, inputs))
      y = y.reshape(*rows.shape[:-1], *weight.shape[: -self.num_inputs])
    else:
      y = jnp.tensordot(x, weight, self.num_inputs, preferred_element_type=jnp.float32)
    if self.channel_scale is not None:
      y = y * self.channel_scale[...]
    return y if self.bias is None else y + self.bias[...]


class Table(nnx.Module):
  """One row per token of the vocabulary, read as an embedding or as the directions of logits."""

  def __init__(self, vocab: int, embed: int, *, param_dtype: Any, rngs: nnx.Rngs):
    self.weight, self.channel_scale = _declare_matrix(
      {"vocab": vocab, "embed": embed}, {"embed": embed}, rngs, param_dtype
    )

  def rows(self, tokens: jax.Array, dtype: Any) -> jax.Array:
    """int32 [...] -> [..., embed]. Ids outside the vocabulary, as in padding, read its ends.

    Float [..., vocab] are mixtures of tokens; one-hot, they give what their ids give.
    """
    if jnp.issubdtype(tokens.dtype, jnp.floating):
      scale = 1 if self.channel_scale is None else self.channel_scale[...]
      return jnp.einsum(
        "...v,ve->...e",
        tokens * scale,
        self.weight[...].astype(tokens.dtype),
        preferred_element_type=jnp.float32,
      ).astype(dtype)
    rows = jnp.take(self.weight[...], tokens, axis=0, mode="clip").astype(dtype)
    if self.channel_scale is None:
      return rows
    scale = jnp.take(self.channel_scale[...], tokens, axis=0, mode="clip")
    return (rows * scale[..., None]).astype(dtype)

  def logits(self, hidden: jax.Array, unembedding: jax.Array | None = None) -> jax.Array:
    """[..., embed] -> float32 [..., vocab]; `unembedding` [embed, vocab] is the table transposed."""
    if unembedding is None:
      y = _product(hidden, self.weight[...].astype(hidden.dtype))
    else:
      table = unembedding.astype(hidden.dtype)
      y = jnp.matmul(hidden, table, preferred_element_type=jnp.float32)
    return y if self.channel_scale is None else y * self.channel_scale[...]


class Norm(nnx.Module):
  """Root-mean-square normalisation over the axes of its scale, computed in float32.

  The axis `layers` is not one of them: a call is given the parameters of one layer. `offset` is added
  to the scale.
  """

  def __init__(
    self, axes: Mapping[str, int], eps: float, offset: float, *, param_dtype: Any, rngs: nnx.Rngs
  ):
    self.eps = eps
    self.offset = offset
    self.axes = tuple(range(-len([axis for axis in axes if axis != "layers"]), 0))
    self.scale = _declare(axes, nnx.initializers.ones, rngs, _small_dtype(param_dtype))

  def __call__(self, x: jax.Array) -> jax.Array:
    """x [..., *axes] -> the same shape and dtype."""
    y = x.astype(jnp.float32)
    y = y * lax.rsqrt(jnp.mean(jnp.square(y), axis=self.axes, keepdims=True) + self.eps)
    scale = self.scale[...].astype(jnp.float32)
    scale = scale + self.offset if self.offset else scale
    return (y * scale).astype(x.dtype)
