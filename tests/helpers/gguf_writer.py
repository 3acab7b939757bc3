"""Writes GGUF files for tests as llama.cpp's converter does, with names of the `gguf` package."""

import json

import gguf
import numpy as np
import safetensors.numpy

from rain_jax.models import hf

# For each type that the package cannot quantise to, where its half floats lie in a block.
HALVES = {"Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}


def kind_of(name):
  return gguf.GGMLQuantizationType[name]


def stored(weight, kind):
  """Bytes of a matrix in some type, and the float32 values that they mean."""
  if kind in HALVES:
    block, size = gguf.GGML_QUANT_SIZES[kind_of(kind)]
    rng = np.random.default_rng(int(np.abs(weight).sum() * 1000) % 2**31)
    blocks = rng.integers(0, 256, (weight.size // block, size), np.uint8)
    for at in HALVES[kind]:
      blocks[:, at : at + 2] = np.float16([0.001]).view(np.uint8)
    raw = blocks.reshape(len(weight), -1)
  elif kind in ("F32", "F16"):
    raw = weight.astype({"F32": np.float32, "F16": np.float16}[kind])
  else:
    raw = gguf.quants.quantize(weight, kind_of(kind))
  return raw, gguf.quants.dequantize(raw, kind_of(kind)).reshape(weight.shape)


def interleaved(weight, heads):
  """Rows of queries or keys, heads' halves in turn."""
  halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
  return halves.swapaxes(1, 2).reshape(weight.shape)


def write(path, folder, kind="F32", add=lambda writer: None, skip=()):
  """Writes a Hugging Face folder as a GGUF file and returns what its weights became.

  Args:
    path: the file.
    folder: config.json and model.safetensors, all float32.
    kind: type of its matrices.
    add: adds more to the `gguf.GGUFWriter`, a tokenizer, say.
    skip: names of tensors that are left out.

  Returns:
    The tensors as Hugging Face names them, as float32.
  """
  config = hf.read_json(folder / "config.json")
  arch, heads = config["model_type"], config["num_attention_heads"]
  kv_heads = config.get("num_key_value_heads", heads)
  writer = gguf.GGUFWriter(path, arch)
  writer.add_context_length(config["max_position_embeddings"])
  writer.add_embedding_length(config["hidden_size"])
  writer.add_block_count(config["num_hidden_layers"])
  writer.add_feed_forward_length(config["intermediate_size"])
  writer.add_head_count(heads)
  writer.add_head_count_kv(kv_heads)
  writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
  rope = config.get("rope_parameters") or {}
  writer.add_rope_freq_base(rope.get("rope_theta") or config.get("rope_theta", 10000.0))
  if "head_dim" in config:
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
  if arch == "mistral":
    writer.add_sliding_window(config["sliding_window"])
  add(writer)
  model = (
    gguf.MODEL_ARCH.LLAMA
    if arch == "mistral"
    else next(a for a, name in gguf.MODEL_ARCH_NAMES.items() if name == arch)
  )
  names = gguf.get_tensor_name_map(model, config["num_hidden_layers"])
  means = {}
  for name, weight in safetensors.numpy.load_file(folder / "model.safetensors").items():
    shown = kind if weight.ndim == 2 else "F32"
    raw, means[name] = stored(weight, shown)
    if arch in ("llama", "mistral") and (".q_proj." in name or ".k_proj." in name):
      raw = interleaved(raw, heads if ".q_proj." in name else kv_heads)
    if (theirs := names.get_name(name, try_suffixes=(".weight", ".bias"))) not in skip:
      writer.add_tensor(theirs, raw, raw_dtype=kind_of(shown))
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return means


def add_byte_level(writer, tokenizer, pre="gpt-2"):
  """The vocabulary of a byte-level BPE of transformers; its added tokens are control tokens."""
  vocab = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
  writer.add_tokenizer_model("gpt2")
  writer.add_tokenizer_pre(pre)
  writer.add_token_list([token for token, _ in vocab])
  control = tokenizer.added_tokens_decoder
  writer.add_token_types([3 if number in control else 1 for _, number in vocab])
  spec = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
  writer.add_token_merges([" ".join(pair) for pair in spec])
  writer.add_bos_token_id(tokenizer.bos_token_id)
  writer.add_eos_token_id(tokenizer.eos_token_id)
