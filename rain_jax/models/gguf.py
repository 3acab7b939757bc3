"""Models from one GGUF file, as llama.cpp writes them: config, end tokens and weights.

Names of tensors map to ours in the table `LAYOUT`; metadata keys are those of
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The tokenizer is in `gguf_tokenizer`.
"""

import pathlib
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rain_jax.models import gguf_file, hf
from rain_jax.models.assembly import Layout, assemble
from rain_jax.models.config import ModelConfig, RopeScaling
from rain_jax.models.gguf_file import GGUFFile
from rain_jax.models.hf import CheckpointError
from rain_jax.models.llama import Model
from rain_jax.models.sharding import Rules

ARCHITECTURES = ("llama", "mistral", "qwen2", "qwen3")

_LAYER = "blk.{layer}."
_NAMES = {
  "embedding/weight": "token_embd.weight",
  "layers/attention_norm/scale": _LAYER + "attn_norm.weight",
  "layers/q/weight": _LAYER + "attn_q.weight",
  "layers/q/bias": _LAYER + "attn_q.bias",
  "layers/k/weight": _LAYER + "attn_k.weight",
  "layers/k/bias": _LAYER + "attn_k.bias",
  "layers/v/weight": _LAYER + "attn_v.weight",
  "layers/v/bias": _LAYER + "attn_v.bias",
  "layers/o/weight": _LAYER + "attn_output.weight",
  "layers/o/bias": _LAYER + "attn_output.bias",
  "layers/q_norm/scale": _LAYER + "attn_q_norm.weight",
  "layers/k_norm/scale": _LAYER + "attn_k_norm.weight",
  "layers/mlp_norm/scale": _LAYER + "ffn_norm.weight",
  "layers/gate/weight": _LAYER + "ffn_gate.weight",
  "layers/gate/bias": _LAYER + "ffn_gate.bias",
  "layers/up/weight": _LAYER + "ffn_up.weight",
  "layers/up/bias": _LAYER + "ffn_up.bias",
  "layers/down/weight": _LAYER + "ffn_down.weight",
  "layers/down/bias": _LAYER + "ffn_down.bias",
  "final_norm/scale": "output_norm.weight",
  "head/weight": "output.weight",
}
LAYOUT: Layout = {path: (name, hf.LAYOUT[path][1]) for path, name in _NAMES.items()}
"""For each of our parameters the GGUF name; the axes are those of Hugging Face's files."""

_ROPE_FACTORS = "rope_freqs.weight"
# llama.cpp rotates neighbours where the others rotate halves: these architectures store the rows of
# queries and keys in that order.
_INTERLEAVED = ("llama", "mistral")
_ROTATED = re.compile(r"blk\.\d+\.attn_[qk]\.(weight|bias)")


def read_config(path: pathlib.Path) -> ModelConfig:
  """The model config of a GGUF file. Raises CheckpointError if it cannot be used."""
  return _config(gguf_file.read_header(path))


def load(
  path: pathlib.Path,
  *,
  param_dtype: Any = jnp.bfloat16,
  compute_dtype: Any = jnp.bfloat16,
  mesh: jax.sharding.Mesh | None = None,
  rules: Rules = Rules(),
) -> Model:
  """Loads a GGUF file, dequantised slice by slice into place; arguments as of `hf.load`.

  Raises:
    CheckpointError: in one line, what is wrong with the file.
  """
  file = gguf_file.read_header(path)
  config = _config(file)
  return assemble(
    config,
    _Tensors(file, config),
    LAYOUT,
    param_dtype=param_dtype,
    compute_dtype=compute_dtype,
    mesh=mesh,
    rules=rules,
  )


class _Tensors:
  """A file's tensors by name, in the order that rotates halves; see `assembly.Tensors`."""

  def __init__(self, file: GGUFFile, config: ModelConfig):
    self._file = file
    self._head = config.head_size
    self._interleaved = file.text("general.architecture") in _INTERLEAVED

  def check(self, expected: Mapping[str, tuple[int, ...]]) -> None:
    """Raises CheckpointError unless the tensors are those expected, in name, shape and type."""
    _check_shapes(self._file, expected)
    extra = sorted(set(self._file.tensors) - set(expected) - {_ROPE_FACTORS})
    if extra:
      raise CheckpointError(
        f"{self._file.path}: {len(extra)} tensors have no place in this model, such as"
        f" {extra[0]!r:.80}"
      )

  def read(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
    """A slice of a tensor, as float32; of rotated rows, whole heads."""
    block = self._file.read(name, index)
    if not (self._interleaved and _ROTATED.fullmatch(name)):
      return block
    pairs = block.reshape(-1, self._head // 2, 2, *block.shape[1:])
    return pairs.swapaxes(1, 2).reshape(block.shape)


def _check_shapes(file: GGUFFile, expected: Mapping[str, tuple[int, ...]]) -> None:
  for name, shape in expected.items():
    tensor = file.tensors.get(name)
    if tensor is None:
      raise CheckpointError(
        f"{file.path}: tensor {name} is missing, expected with shape {list(shape)}"
      )
    if tensor.shape != shape:
      raise CheckpointError(
        f"{file.path}: tensor {name} has shape {list(tensor.shape)}, expected {list(shape)} from"
        " the metadata"
      )
    if tensor.kind not in gguf_file.TYPES:
      raise CheckpointError(
        f"{file.path}: tensor {name} has type {tensor.kind}, expected one of"
        f" {', '.join(gguf_file.TYPES)}"
      )


def _config(file: GGUFFile) -> ModelConfig:
  architecture = file.text("general.architecture")
  if architecture not in ARCHITECTURES:
    raise CheckpointError(
      f"{file.path}: architecture {architecture!r:.80} is not supported, expected one of"
      f" {', '.join(ARCHITECTURES)}"
    )
  key = lambda name: f"{architecture}.{name}"
  for name, most, what in (
    ("split.count", 1, "parts; merge them into one file with llama.cpp's gguf-split --merge"),
    (key("expert_count"), 0, "experts; mixtures of experts are not supported"),
  ):
    if (found := file.count(name, 0, least=0)) > most:
      raise CheckpointError(f"{file.path}: one model of {found} {what}")
  if (embedding := file.tensors.get("token_embd.weight")) is None or len(embedding.shape) != 2:
    raise CheckpointError(f"{file.path}: holds no table of embeddings, token_embd.weight")
  vocab, hidden = embedding.shape
  layers, inner = file.count(key("block_count")), file.count(key("feed_forward_length"))
  if layers > len(file.tensors):
    raise CheckpointError(
      f"{file.path}: {key('block_count')} = {layers}, the file has {len(file.tensors)} tensors"
    )
  heads = file.count(key("attention.head_count"))
  kv_heads = file.count(key("attention.head_count_kv"), heads)
  width = file.count(key("embedding_length"))
  head = file.count(key("attention.key_length"), width // heads)
  for name in ("attention.value_length", "rope.dimension_count"):
    if (found := file.count(key(name), head)) != head:
      raise CheckpointError(
        f"{file.path}: {key(name)} = {found} is not supported, expected {head}, the size of a head"
      )
  # What the metadata claims is what the file has room for.
  _check_shapes(
    file,
    {
      "token_embd.weight": (vocab, width),
      "blk.0.ffn_gate.weight": (inner, hidden),
      "blk.0.attn_q.weight": (heads * head, hidden),
      "blk.0.attn_k.weight": (kv_heads * head, hidden),
    },
  )
  window = _window(file, key, architecture)
  ends = {file.token_id(f"tokenizer.ggml.{name}_token_id", vocab) for name in ("eos", "eot", "eom")}
  try:
    return ModelConfig(
      vocab_size=vocab,
      hidden_size=hidden,
      intermediate_size=inner,
      num_layers=layers,
      num_heads=heads,
      num_kv_heads=kv_heads,
      head_size=head,
      rms_norm_eps=file.number(key("attention.layer_norm_rms_epsilon")),
      rope_theta=file.number(key("rope.freq_base"), 10000.0),
      rope_scaling=_rope_scaling(file, key, head),
      tie_embeddings="output.weight" not in file.tensors,
      attention_bias="blk.0.attn_q.bias" in file.tensors,
      attention_output_bias="blk.0.attn_output.bias" in file.tensors,
      mlp_bias="blk.0.ffn_gate.bias" in file.tensors,
      qk_norm=architecture == "qwen3",
      sliding_window=window,
      sliding_layers=() if window is None else (True,) * layers,
      eos_ids=tuple(sorted(end for end in ends if end is not None)),
      bos_id=file.token_id("tokenizer.ggml.bos_token_id", vocab),
      max_position=file.count(key("context_length"), 2048),
    )
  except CheckpointError:
    raise
  except ValueError as error:
    raise CheckpointError(f"{file.path}: {error}") from error


def _window(file: GGUFFile, key: Any, architecture: str) -> int | None:
  """The attention window, which only Mistral's files may have."""
  window = file.count(key("attention.sliding_window"), 0, least=0)
  if window and architecture != "mistral":
    raise CheckpointError(
      f"{file.path}: {key('attention.sliding_window')} = {window} is not supported, expected none"
    )
  return window or None


def _rope_scaling(file: GGUFFile, key: Any, head: int) -> RopeScaling | None:
  """Factors of the frequencies as a tensor, such as LLaMA 3.1 has, or linear by the metadata."""
  kind = file.text(key("rope.scaling.type"), "linear")
  factor = file.number(key("rope.scaling.factor"), file.number(key("rope.scale_linear"), 1.0))
  if kind == "none":
    factor = 1.0
  if kind not in ("none", "linear"):
    raise CheckpointError(
      f"{file.path}: {key('rope.scaling.type')} = {kind!r:.80} is not supported, expected none or"
      " linear"
    )
  if _ROPE_FACTORS in file.tensors:
    _check_shapes(file, {_ROPE_FACTORS: (head // 2,)})
    factors = file.read(_ROPE_FACTORS, (slice(None),)).astype(float)
    if not (np.isfinite(factors).all() and (factors > 0).all()):
      raise CheckpointError(f"{file.path}: {_ROPE_FACTORS} is not all finite and above zero")
    return RopeScaling("factors", factor, factors=tuple(factors.tolist()))
  return RopeScaling("linear", factor) if factor != 1 else None
