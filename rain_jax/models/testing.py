"""Tiny random checkpoints of every supported family, in the Hugging Face format, for tests."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import jax

from rain_jax.models import hf
from rain_jax.models.config import ModelConfig
from rain_jax.models.llama import Model, abstract_model
from rain_jax.models.sharding import flatten, unflatten

_BASE = {
  "vocab_size": 96,
  "hidden_size": 32,
  "intermediate_size": 80,
  "num_hidden_layers": 3,
  "num_attention_heads": 4,
  "num_key_value_heads": 2,
  "max_position_embeddings": 256,
  "rms_norm_eps": 1e-5,
  "bos_token_id": 1,
  "eos_token_id": 2,
  "hidden_act": "silu",
  "tie_word_embeddings": False,
}
_LLAMA3_ROPE = {
  "rope_type": "llama3",
  "factor": 8.0,
  "low_freq_factor": 1.0,
  "high_freq_factor": 4.0,
  "original_max_position_embeddings": 64,
}
_GEMMA = {key: value for key, value in _BASE.items() if key != "tie_word_embeddings"} | {
  "head_dim": 16,
  "query_pre_attn_scalar": 20,
  "sliding_window": 5,
  "hidden_act": "gelu_pytorch_tanh",
  "hidden_activation": "gelu_pytorch_tanh",
}

FAMILIES: Mapping[str, Mapping[str, Any]] = {
  # LLaMA 1 files know neither grouped queries nor a RoPE base.
  "llama1": {key: value for key, value in _BASE.items() if key != "num_key_value_heads"}
  | {"model_type": "llama"},
  "llama2": _BASE | {"model_type": "llama", "rope_scaling": None},
  "llama3": _BASE
  | {
    "model_type": "llama",
    "tie_word_embeddings": True,
    "eos_token_id": [2, 3],
    "rope_theta": 500000.0,
    "rope_scaling": _LLAMA3_ROPE,
  },
  "llama_linear": _BASE
  | {
    "model_type": "llama",
    "rope_scaling": {"type": "linear", "factor": 4.0},
    "attention_bias": True,
    "mlp_bias": True,
  },
  # The spelling of transformers 5, and a window shorter than the tests' texts.
  "mistral": _BASE
  | {
    "model_type": "mistral",
    "head_dim": 8,
    "sliding_window": 5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
  },
  "qwen2": _BASE
  | {
    "model_type": "qwen2",
    "rope_theta": 1e6,
    "tie_word_embeddings": True,
    "use_sliding_window": False,
    "sliding_window": 4,
  },
  "qwen2_window": _BASE
  | {
    "model_type": "qwen2",
    "use_sliding_window": True,
    "sliding_window": 4,
    "max_window_layers": 1,
  },
  "qwen3": _BASE | {"model_type": "qwen3", "head_dim": 16, "attention_bias": False},
  # As Qwen's notes on long texts have it: the trained context is the file's own.
  "qwen3_yarn": _BASE
  | {
    "model_type": "qwen3",
    "head_dim": 16,
    "rope_theta": 1e6,
    "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
  },
  "smollm3": _BASE
  | {
    "model_type": "smollm3",
    "tie_word_embeddings": True,
    "pad_token_id": 0,  # of its own the library would take the 128004th
    "no_rope_layers": [1, 0, 1],
    "rope_theta": 5e6,
  },
  "olmo2": _BASE | {"model_type": "olmo2", "rope_theta": 500000.0},
  # Silent about ties, as are those on the hub.
  "gemma2": _GEMMA
  | {"model_type": "gemma2", "attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0},
  "gemma3": _GEMMA
  | {
    "model_type": "gemma3_text",
    "rope_theta": 1e6,
    "rope_local_base_freq": 10000,
    "rope_scaling": {"rope_type": "linear", "factor": 8.0},
    "sliding_window_pattern": 3,
  },
}
"""The contents of `config.json` for each family, spelled as its releases spell them."""


def random_model(family: str, seed: int = 0, config: Mapping[str, Any] | None = None) -> Model:
  """A float32 model of one of `FAMILIES`, its parameters random, norms and biases included.

  `config` are the contents of a `config.json` to use in place of the family's.
  """
  model = abstract_model(ModelConfig.from_hf(FAMILIES[family] if config is None else config))
  leaves = flatten(model.params)
  keys = jax.random.split(jax.random.key(seed), len(leaves))
  params = {
    path: 0.2 * jax.random.normal(key, leaf.shape) + float(path.endswith("norm/scale"))
    for key, (path, leaf) in zip(keys, leaves.items(), strict=True)
  }
  return dataclasses.replace(model, params=unflatten(params))


def write_checkpoint(folder: str | pathlib.Path, family: str, seed: int = 0) -> pathlib.Path:
  """Writes a tiny random checkpoint of one of `FAMILIES` and returns its folder."""
  hf.save(folder, FAMILIES[family], random_model(family, seed).params)
  return pathlib.Path(folder)
