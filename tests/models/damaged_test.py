"""Checkpoints that are damaged or contradict themselves end in one line, in every dtype."""

import json
import logging

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import safetensors.numpy

from rain_jax.models import hf, testing
from rain_jax.models.config import ModelConfig
from rain_jax.models.hf import CheckpointError

CONFIG = testing.FAMILIES["llama2"]
YARN = {"rope_type": "yarn", "factor": 4.0}
LINEAR = {"rope_type": "linear", "factor": 2.0}


@pytest.mark.parametrize(
  "changes, said",
  [
    ({"num_attention_heads": "4"}, "num_attention_heads = '4'"),
    ({"num_attention_heads": 0}, "num_attention_heads = 0"),
    ({"num_attention_heads": -1}, "num_attention_heads = -1"),
    ({"num_attention_heads": True}, "num_attention_heads = True"),
    ({"num_attention_heads": [4]}, "num_attention_heads"),
    ({"hidden_size": 32.0}, "hidden_size = 32.0"),
    ({"num_hidden_layers": 10**12}, "num_hidden_layers"),
    ({"vocab_size": None}, "no 'vocab_size'"),
    ({"head_dim": -8}, "head_dim = -8"),
    ({"rms_norm_eps": "tiny"}, "rms_norm_eps = 'tiny'"),
    ({"rms_norm_eps": float("nan")}, "rms_norm_eps = nan"),
    ({"tie_word_embeddings": "no"}, "tie_word_embeddings = 'no'"),
    ({"eos_token_id": "2"}, "eos_token_id = '2'"),
    ({"eos_token_id": [2, -1]}, "eos_token_id = -1"),
    ({"bos_token_id": 1.5}, "bos_token_id = 1.5"),
    ({"max_position_embeddings": "2k"}, "max_position_embeddings = '2k'"),
    ({"model_type": ["llama"]}, "model_type"),
    ({"rope_scaling": "yarn"}, "rope_scaling = 'yarn'"),
    ({"rope_parameters": ["linear"]}, "rope_parameters = "),
    ({"rope_scaling": {"rope_type": ["linear"]}}, "rope type"),
    ({"rope_scaling": {"rope_type": "linear", "factor": "2"}}, "factor = '2'"),
    ({"rope_theta": -1.0}, "rope_theta = -1.0"),
    ({"rope_parameters": {"rope_type": "default"}, "rope_scaling": YARN}, "RoPE twice"),
    ({"rope_parameters": {"rope_theta": 1e4}, "rope_scaling": LINEAR}, "RoPE twice"),
    ({"rope_parameters": LINEAR, "rope_scaling": LINEAR | {"factor": 4.0}}, "RoPE twice"),
    ({"rope_parameters": {"rope_theta": 5e5}, "rope_theta": 1e4}, "rope_theta differ"),
  ],
)
def test_a_config_that_cannot_be_is_refused(changes, said):
  with pytest.raises(ValueError, match=said) as caught:
    ModelConfig.from_hf(CONFIG | changes)
  assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
  "changes",
  [
    {"rope_parameters": LINEAR, "rope_scaling": {"type": "linear", "factor": 2.0}},
    {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}, "rope_theta": 1e4},
    {"rope_parameters": {"rope_type": "default"}, "rope_scaling": {"rope_type": "default"}},
    {"rope_scaling": None, "rope_parameters": None},
  ],
)
def test_rope_given_twice_alike_is_no_contradiction(changes):
  ModelConfig.from_hf(CONFIG | changes)


JSON = st.recursive(
  st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
  lambda inner: (
    st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
  ),
  max_leaves=5,
)


@hypothesis.given(key=st.sampled_from(sorted({*CONFIG, "rope_parameters", "head_dim"})), value=JSON)
@hypothesis.settings(max_examples=300, deadline=None)
def test_whatever_a_config_holds_is_read_or_refused_in_one_line(key, value):
  try:
    config = ModelConfig.from_hf(CONFIG | {key: value})
  except ValueError as error:
    assert "\n" not in str(error)
  else:
    assert config.num_layers >= 1 and config.vocab_size >= 1


def test_deep_json_is_refused(tmp_path):
  (tmp_path / "config.json").write_text("[" * 100_000)
  with pytest.raises(CheckpointError, match="not valid JSON"):
    hf.read_config(tmp_path)


def tensors_of(folder):
  return safetensors.numpy.load_file(folder / "model.safetensors")


def store(folder, tensors, name="model.safetensors"):
  safetensors.numpy.save_file(tensors, folder / name, metadata={"format": "pt"})


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_no_numbers_are_refused_in_every_dtype(tmp_path, dtype, value):
  folder = testing.write_checkpoint(tmp_path, "llama2")
  tensors = tensors_of(folder)
  name = "model.layers.1.mlp.up_proj.weight"
  broken = tensors[name].copy()
  broken[0, 0] = value
  store(folder, tensors | {name: broken})
  with pytest.raises(CheckpointError, match=f"{name} holds values that are no finite numbers"):
    hf.load(folder, param_dtype=dtype, compute_dtype="float32")


def test_an_output_table_of_its_own_is_used_despite_the_config(tmp_path, caplog):
  folder = testing.write_checkpoint(tmp_path, "llama2")
  tied = json.loads((folder / "config.json").read_text()) | {"tie_word_embeddings": True}
  (folder / "config.json").write_text(json.dumps(tied))
  with caplog.at_level(logging.WARNING):
    model = hf.load(folder, param_dtype="float32", compute_dtype="float32")
  assert not model.config.tie_embeddings and "lm_head.weight differs" in caplog.text
  np.testing.assert_array_equal(
    model.params["head"]["weight"], tensors_of(folder)["lm_head.weight"]
  )
  caplog.clear()
  same = tensors_of(folder)
  store(folder, same | {"lm_head.weight": same["model.embed_tokens.weight"]})
  with caplog.at_level(logging.WARNING):
    assert hf.load(folder, param_dtype="float32").config.tie_embeddings
  assert not caplog.text


@pytest.mark.parametrize(
  "index, said",
  [
    ({}, "no weight_map"),
    ({"weight_map": None}, "no weight_map"),
    ({"weight_map": ["model.safetensors"]}, "no weight_map"),
    ({"weight_map": {"a": 1}}, "no weight_map"),
    ({"weight_map": {"a": "../model.safetensors"}}, "no file of this folder"),
    ({"weight_map": {"a": "/etc/passwd"}}, "no file of this folder"),
    ({"weight_map": {"a": "sub/model.safetensors"}}, "no file of this folder"),
    ({"weight_map": {"a": "there.safetensors"}}, "there.safetensors"),
    ({"weight_map": {}}, "no files"),
  ],
)
def test_an_index_that_names_other_files_is_refused(tmp_path, index, said):
  folder = testing.write_checkpoint(tmp_path, "llama2")
  (folder / "model.safetensors.index.json").write_text(json.dumps(index))
  with pytest.raises(CheckpointError, match=said) as caught:
    hf.load(folder)
  assert "\n" not in str(caught.value)


def test_of_a_tensor_in_two_files_the_index_says_which_counts(tmp_path):
  folder = testing.write_checkpoint(tmp_path, "llama2")
  tensors, name = tensors_of(folder), "model.norm.weight"
  store(folder, tensors, "a.safetensors")
  store(folder, {name: tensors[name] + 1}, "b.safetensors")
  (folder / "model.safetensors").unlink()
  for place, more in (("a.safetensors", 0), ("b.safetensors", 1)):
    weight_map = dict.fromkeys(tensors, "a.safetensors") | {name: place}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    model = hf.load(folder, param_dtype="float32", compute_dtype="float32")
    np.testing.assert_array_equal(model.params["final_norm"]["scale"], tensors[name] + more)
