"""all-MiniLM-L6-v2, the sentence encoder with which the method compares texts (RAIN, section 3.2).

A BERT encoder of six layers; a text's embedding is the mean of its last hidden states,
scaled to length one. Weights, config and tokenizer are read from a local folder in the
layout of sentence-transformers.

Text exists on the host only, the encoder runs wherever the search runs: inside jitted
code, `MiniLM.embed_in_graph` asks the host for word pieces and encodes them in the
graph. The other way round, a host callback that calls the encoder, would leave an
accelerator idle, and can hang on the CPU backend, where what a callback waits for may
need the threads that wait for the callback: seen on one core with inputs of 200 kB and
several executions in flight. There a callback hangs even on its own arguments once
they are of that size, so only small arrays should be sent to the host.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import transformers
from flax import nnx
from jax import lax

# Rows that are encoded together, and the widths they are padded to. Rows are sorted by
# length first, so that few positions are wasted; what is not there costs nothing.
_ROWS = 16
_WIDTHS = (16, 32, 64, 128, 256)

# Our parameters and their names in the file, "%d" being the layer. Kernels of linear
# layers are transposed.
_NAMES = {
  "words": "embeddings.word_embeddings.weight",
  "positions": "embeddings.position_embeddings.weight",
  "types": "embeddings.token_type_embeddings.weight",
  "norm": "embeddings.LayerNorm",
  "layers.query": "encoder.layer.%d.attention.self.query",
  "layers.key": "encoder.layer.%d.attention.self.key",
  "layers.value": "encoder.layer.%d.attention.self.value",
  "layers.mix": "encoder.layer.%d.attention.output.dense",
  "layers.mix_norm": "encoder.layer.%d.attention.output.LayerNorm",
  "layers.up": "encoder.layer.%d.intermediate.dense",
  "layers.down": "encoder.layer.%d.output.dense",
  "layers.down_norm": "encoder.layer.%d.output.LayerNorm",
}
_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias"}

# What the folder's JSON files have to say for this encoder to be the right one.
_EXPECTED: Mapping[str, Mapping[str, Any]] = {
  "config.json": {
    "model_type": "bert",
    "hidden_act": "gelu",
    "position_embedding_type": "absolute",
  },
  "1_Pooling/config.json": {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False},
}


class EncoderError(ValueError):
  """A folder that holds no usable encoder; the message says why, in one line."""


class Layer(nnx.Module):
  """Self-attention and a feed-forward network, each normalised after its residual."""

  def __init__(self, config: dict, rngs: nnx.Rngs):
    width, inner = config["hidden_size"], config["intermediate_size"]
    self.heads = config["num_attention_heads"]
    self.query = nnx.Linear(width, width, rngs=rngs)
    self.key = nnx.Linear(width, width, rngs=rngs)
    self.value = nnx.Linear(width, width, rngs=rngs)
    self.mix = nnx.Linear(width, width, rngs=rngs)
    self.mix_norm = nnx.LayerNorm(width, epsilon=config["layer_norm_eps"], rngs=rngs)
    self.up = nnx.Linear(width, inner, rngs=rngs)
    self.down = nnx.Linear(inner, width, rngs=rngs)
    self.down_norm = nnx.LayerNorm(width, epsilon=config["layer_norm_eps"], rngs=rngs)

  def __call__(self, x: jax.Array, valid: jax.Array) -> jax.Array:
    """x float32[n, T, E], valid bool[n, T] -> float32[n, T, E]."""
    split = lambda y: y.reshape(*y.shape[:2], self.heads, -1)
    query, key, value = split(self.query(x)), split(self.key(x)), split(self.value(x))
    scores = jnp.einsum("nqhd,nkhd->nhqk", query, key) * query.shape[-1] ** -0.5
    scores = jnp.where(valid[:, None, None], scores, jnp.finfo(scores.dtype).min)
    mixed = jnp.einsum("nhqk,nkhd->nqhd", jax.nn.softmax(scores), value)
    x = self.mix_norm(x + self.mix(mixed.reshape(x.shape)))
    return self.down_norm(x + self.down(jax.nn.gelu(self.up(x), approximate=False)))


class Encoder(nnx.Module):
  """Word pieces to embeddings; the parameters of `layers` are stacked on a first axis."""

  def __init__(self, config: dict, rngs: nnx.Rngs):
    width, normal = config["hidden_size"], nnx.initializers.normal(0.02)
    declare = lambda rows: nnx.Param(normal(rngs.params(), (config[rows], width)))
    self.words = declare("vocab_size")
    self.positions = declare("max_position_embeddings")
    self.types = declare("type_vocab_size")
    self.norm = nnx.LayerNorm(width, epsilon=config["layer_norm_eps"], rngs=rngs)
    keys = jax.random.split(rngs.params(), config["num_hidden_layers"])
    self.layers = nnx.vmap(lambda key: Layer(config, nnx.Rngs(key)))(keys)

  def __call__(self, pieces: jax.Array, lengths: jax.Array) -> jax.Array:
    """int32[n, T] word pieces, int32[n] how many -> float32[n, E]; zeros for none."""
    valid = jnp.arange(pieces.shape[1]) < lengths[:, None]
    x = self.words[...][pieces] + self.positions[: pieces.shape[1]] + self.types[0]
    graphdef, params = nnx.split(self.layers)
    step = lambda x, layer: (nnx.merge(graphdef, layer)(x, valid), None)
    x, _ = lax.scan(step, self.norm(x), params)
    mean = jnp.where(valid[..., None], x, 0).sum(1) / jnp.maximum(lengths, 1)[:, None]
    return mean / jnp.maximum(jnp.linalg.norm(mean, axis=-1, keepdims=True), 1e-12)


@dataclasses.dataclass(frozen=True, eq=False)
class MiniLM:
  """An encoder with its tokenizer; static, its arrays are passed as `params`.

  Attributes:
    graphdef: structure of `Encoder`.
    params: its parameters, float32.
    tokenizer: of the tokenizers library, set to cut texts at `max_pieces`.
    max_pieces: word pieces that are read of a text, the two special ones included.
    size: width of an embedding (E).
  """

  graphdef: nnx.GraphDef
  params: Any = dataclasses.field(repr=False)
  tokenizer: Any = dataclasses.field(repr=False)
  max_pieces: int
  size: int

  def word_pieces(self, texts: Sequence[str | None]) -> tuple[np.ndarray, np.ndarray]:
    """Word pieces int32[n, max_pieces] of texts, 0 after each, and how many, int32[n].

    None stands for no text, and has none. Uses no JAX, and may be called by several
    threads at once: safe in a host callback.
    """
    pieces = np.zeros((len(texts), self.max_pieces), np.int32)
    lengths = np.zeros(len(texts), np.int32)
    rows = [row for row, text in enumerate(texts) if text is not None]
    encodings = self.tokenizer.encode_batch([texts[row] for row in rows])
    for row, encoding in zip(rows, encodings, strict=True):
      lengths[row] = len(encoding.ids)
      pieces[row, : lengths[row]] = encoding.ids
    return pieces, lengths

  def encode(self, params: Any, pieces: jax.Array, lengths: jax.Array) -> jax.Array:
    """Embeddings of word pieces, in the graph.

    Args:
      params: `self.params`, an argument of the jitted function rather than a constant.
      pieces: int32[n, max_pieces] from `word_pieces`.
      lengths: int32[n].

    Returns:
      float32[n, E] of length one, zeros for no text. Work is in proportion to the
      texts that are there and, roughly, their lengths. Rows are sorted across n: on
      several devices call it in `shard_map`.
    """
    rows, limit = pieces.shape
    widths = [*(width for width in _WIDTHS if width < limit), limit]
    order = jnp.argsort(-lengths)
    order = jnp.pad(order, (0, -rows % _ROWS), constant_values=rows)  # after the end
    embed = lambda width: (
      lambda part, count: nnx.merge(self.graphdef, params)(part[:, :width], count)
    )
    branches = [embed(width) for width in widths]

    def unfinished(carry):
      return carry[0] < (lengths > 0).sum()

    def encode_rows(carry):
      begin, out = carry
      chosen = lax.dynamic_slice(order, (begin,), (_ROWS,))
      part = pieces.at[chosen].get(mode="fill", fill_value=0)
      count = lengths.at[chosen].get(mode="fill", fill_value=0)
      fitting = jnp.searchsorted(jnp.array(widths), count.max())
      new = lax.switch(fitting, branches, part, count)
      return begin + _ROWS, out.at[chosen].set(new, mode="drop")

    out = jnp.zeros((rows, self.size), jnp.float32)
    return lax.while_loop(unfinished, encode_rows, (0, out))[1]

  def embed_in_graph(
    self, params: Any, read: Callable[..., Sequence[str | None]], rows: int, *arrays: jax.Array
  ) -> jax.Array:
    """Embeddings of texts that the host reads off arrays, inside jitted code.

    Args:
      params: `self.params`.
      read: pure host function from `arrays` to `rows` texts (None: no text). It must not
        run jitted code, and `arrays` should be small, see the module's text.
      rows: how many texts.
      *arrays: what the texts are read off, e.g. tokens.

    Returns:
      float32[rows, E].
    """

    def ask(*arrays):
      return self.word_pieces(read(*map(np.asarray, arrays)))

    shapes = (
      jax.ShapeDtypeStruct((rows, self.max_pieces), jnp.int32),
      jax.ShapeDtypeStruct((rows,), jnp.int32),
    )
    return self.encode(params, *jax.pure_callback(ask, shapes, *arrays))

  def embed(self, texts: Sequence[str]) -> np.ndarray:
    """Embeddings float32[n, E] of texts, for host code; not for use in a host callback."""
    batch = 16 * _ROWS
    out = np.zeros((len(texts), self.size), np.float32)
    for begin in range(0, len(texts), batch):
      part = list(texts[begin : begin + batch])
      filled = part + [None] * (batch - len(part))
      new = _encode(self, self.params, *self.word_pieces(filled))
      out[begin : begin + batch] = new[: len(part)]
    return out


_encode = jax.jit(MiniLM.encode, static_argnums=0)


def load_minilm(folder: str | os.PathLike) -> MiniLM:
  """Loads the encoder from a local folder in the layout of sentence-transformers.

  Raises:
    EncoderError: naming the file, and what it was expected to hold.
  """
  folder = pathlib.Path(folder)
  for file, expected in _EXPECTED.items():
    found = _read_json(folder / file)
    for key, value in expected.items():
      # Configs leave out what has its default value.
      if found.get(key, value) != value:
        raise EncoderError(f"{folder / file}: {key}={found[key]!r}: expected {value!r}.")
  config = _read_json(folder / "config.json")
  limit = _read_json(folder / "sentence_bert_config.json")["max_seq_length"]

  model = nnx.eval_shape(lambda: Encoder(config, nnx.Rngs(0)))
  graphdef, abstract = nnx.split(model)
  params = _read_weights(folder / "model.safetensors", abstract, config["num_hidden_layers"])
  tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
  backend = tokenizer.backend_tokenizer
  backend.enable_truncation(limit)
  backend.no_padding()
  backend.encode_special_tokens = True  # [SEP] in a response is text
  return MiniLM(graphdef, params, backend, limit, config["hidden_size"])


def _read_json(path: pathlib.Path) -> dict:
  if not path.is_file():
    raise EncoderError(f"{path} is missing; expected a folder in sentence-transformers' layout.")
  return json.loads(path.read_text(encoding="utf-8"))


def _read_weights(path: pathlib.Path, abstract: nnx.State, layers: int) -> nnx.State:
  """The parameters of an abstract encoder, tensor by tensor."""
  if not path.is_file():
    raise EncoderError(f"{path} is missing; expected the encoder's weights.")
  with safetensors.safe_open(path, framework="numpy") as file:
    known = set(file.keys())

    def read(name: str) -> np.ndarray:
      if name not in known:
        raise EncoderError(f"{path}: tensor {name!r} is missing; expected a BERT encoder.")
      return file.get_tensor(name).astype(np.float32)

    def fill(keys: tuple[Any, ...], leaf: Any) -> Any:
      name = _NAMES.get(".".join(keys)) or f"{_NAMES['.'.join(keys[:-1])]}.{_LEAVES[keys[-1]]}"
      stacked = [read(name % i) for i in range(layers)] if "%d" in name else read(name)
      array = np.asarray(stacked)
      if keys[-1] == "kernel":
        array = array.swapaxes(-1, -2)
      if array.shape != leaf.shape:
        raise EncoderError(
          f"{path}: {name}: shape {array.shape}, expected {leaf.shape} by config.json."
        )
      return leaf.replace(jnp.asarray(array))

    flat = nnx.to_flat_state(abstract)
    return nnx.from_flat_state([(keys, fill(keys, leaf)) for keys, leaf in flat])
