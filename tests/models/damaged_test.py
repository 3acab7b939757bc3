"""Checkpoints that are damaged or contradict themselves end in one line, in every dtype."""

import dataclasses
import json
import logging

import hypothesis
import hypothesis.strategies as st
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from rain_jax.models import checkpoint, hf, testing
from rain_jax.models.config import ModelConfig
from rain_jax.models.hf import CheckpointError

CONFIG = testing.FAMILIES["llama2"]
YARN = {"rope_type": "yarn", "factor": 4.0}
LINEAR = {"rope_type": "linear", "factor": 2.0}
LLAMA3 = {
  "rope_type": "llama3",
  "factor": 8.0,
  "low_freq_factor": 1.0,
  "high_freq_factor": 4.0,
  "original_max_position_embeddings": 8192,
}
GEMMA = {"model_type": "gemma3_text", "hidden_act": "gelu_pytorch_tanh", "sliding_window": 4}
NESTED = {"full_attention": {"rope_type": "default"}, "sliding_attention": LINEAR}
WINDOW = {"model_type": "qwen2", "use_sliding_window": True}


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
    ({"eos_token_id": 96}, "eos_token_id = 96: the model has the tokens 0 to 95"),
    ({"num_key_value_heads": 0}, "num_key_value_heads = 0"),
    ({"num_key_value_heads": 3}, "not a multiple"),
    ({"head_dim": 7}, "odd"),
    ({"hidden_size": 10**30}, "hidden_size = 10"),
    ({"hidden_act": ["silu"]}, "hidden_act"),
    ({"quantization_config": {"bits": 4}}, "quantization_config"),
    ({"architectures": ["LlamaForSequenceClassification"]}, "a classifier"),
    ({"architectures": ["Qwen2ForRewardModel"]}, "no language model"),
    ({"architectures": "LlamaForCausalLM"}, "expected a list of names"),
    ({"architectures": [3]}, "expected a list of names"),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    ({"rope_scaling": {"rope_type": "linear", "factor": -1}}, "factor = -1"),
    ({"rope_scaling": "yarn"}, "rope_scaling = 'yarn'"),
    ({"rope_parameters": ["linear"]}, "rope_parameters = "),
    ({"rope_scaling": {"rope_type": ["linear"]}}, "rope type"),
    ({"rope_scaling": {"rope_type": "linear", "factor": "2"}}, "factor = '2'"),
    ({"rope_theta": -1.0}, "rope_theta = -1.0"),
    ({"rope_parameters": {"rope_type": "default"}, "rope_scaling": YARN}, "RoPE twice"),
    ({"rope_parameters": {"rope_theta": 1e4}, "rope_scaling": LINEAR}, "RoPE twice"),
    ({"rope_parameters": LINEAR, "rope_scaling": LINEAR | {"factor": 4.0}}, "RoPE twice"),
    ({"rope_parameters": {"rope_theta": 5e5}, "rope_theta": 1e4}, "rope_theta differ"),
    ({"rope_theta": 10**400}, "rope_theta = 1000"),
    ({"rms_norm_eps": 10**400}, "rms_norm_eps = 1000"),
    ({"rope_theta": 1e300}, "rope_theta = 1e\\+300"),
    ({"rope_theta": float("nan")}, "rope_theta = nan"),
    ({"num_attention_heads": 64}, "not a multiple of num_attention_heads = 64"),
    ({"num_attention_heads": 6}, "not a multiple of num_attention_heads = 6"),
    ({"rope_scaling": {"factor": 2.0}}, "factor of 2.0 and no kind"),
    ({"rope_parameters": {"rope_type": "default", "factor": 4.0}}, "factor of 4.0 and no kind"),
    ({"rope_parameters": {"rope_type": "default"}, "rope_scaling": {"factor": 2.0}}, "no kind"),
    ({"rope_scaling": LINEAR | {"type": "default"}}, "rope_type differ"),
    ({"rope_scaling": LINEAR | {"factor": 0.5}}, "factor = 0.5 .* expected 1 or more"),
    ({"rope_scaling": LINEAR | {"factor": 1e308}}, "factor = 1e\\+308"),
    ({"rope_scaling": LLAMA3 | {"low_freq_factor": 4.0}}, "low_freq_factor = 4.0"),
    (
      {
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
        "rope_scaling": {"type": "default"},
        "rope_theta": 1e4,
      },
      "rope_theta differ",
    ),
    ({"rope_parameters": {"rope_theta": 0}}, "rope_theta = 0"),
    ({"partial_rotary_factor": 0}, "partial_rotary_factor = 0"),
    ({"model_type": "qwen2", "use_sliding_window": "no"}, "use_sliding_window = 'no'"),
    ({"sliding_window": 4, "max_window_layers": -1} | WINDOW, "max_window_layers = -1"),
    ({"rope_scaling": YARN | {"beta_fast": 1, "beta_slow": 2}}, "beta_slow = 2.0"),
    ({"rope_scaling": YARN | {"beta_slow": 1e-300}}, "beta_slow = 1e-300"),
    ({"rope_scaling": YARN | {"attention_factor": -1.0}}, "attention_factor = -1.0"),
    ({"rope_scaling": YARN | {"mscale": "1"}}, "mscale = '1'"),
    ({"rope_scaling": YARN | {"truncate": "no"}}, "truncate = 'no'"),
    ({"rope_scaling": YARN, "rope_theta": 1.0}, "rope_theta = 1.0"),
    ({"rope_scaling": YARN, "max_position_embeddings": None}, "original_max_position_embeddings"),
    ({"rope_scaling": LLAMA3, "original_max_position_embeddings": 4096}, "RoPE twice"),
    ({"query_pre_attn_scalar": 256}, "query_pre_attn_scalar = 256"),
    ({"final_logit_softcapping": 30.0}, "final_logit_softcapping = 30.0"),
    ({"model_type": "gemma3"}, "reads images: .* its text model alone, gemma3_text"),
    (GEMMA | {"hidden_activation": "gelu"}, "hidden_activation = 'gelu'"),
    (GEMMA | {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping = 50.0"),
    (GEMMA | {"use_bidirectional_attention": True}, "use_bidirectional_attention = True"),
    (GEMMA | {"sliding_window": None}, "no 'sliding_window'"),
    (GEMMA | {"rope_parameters": NESTED}, "RoPE of sliding_attention is scaled"),
    (GEMMA | {"rope_parameters": NESTED | {"local": {}}}, "RoPE per layer type .'local'"),
    (GEMMA | {"rope_parameters": {"full_attention": 1}}, "rope_parameters = 1"),
    (GEMMA | {"rope_local_base_freq": 0}, "rope_local_base_freq = 0"),
    (GEMMA | {"sliding_window_pattern": 0}, "sliding_window_pattern = 0"),
    (GEMMA | {"layer_types": ["full_attention"]}, "sliding_layers has 1 flags, expected 3"),
    ({"model_type": "smollm3", "no_rope_layers": [1, 2, 0]}, "no_rope_layers = "),
    ({"model_type": "smollm3", "no_rope_layers": [1]}, "unrotated_layers has 1 flags, expected 3"),
    ({"model_type": "smollm3", "no_rope_layer_interval": 0}, "no_rope_layer_interval = 0"),
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
  st.none() | st.booleans() | st.integers() | st.just(10**400) | st.floats() | st.text(max_size=5),
  lambda inner: (
    st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
  ),
  max_leaves=5,
)


KEYS = {"rope_parameters", "head_dim", "layer_types", "no_rope_layers", "use_sliding_window"}


@hypothesis.given(
  family=st.sampled_from(["llama2", "qwen3_yarn", "smollm3", "gemma2", "gemma3"]),
  key=st.sampled_from(sorted({*CONFIG, *testing.FAMILIES["gemma3"], *KEYS})),
  value=JSON,
)
@hypothesis.settings(max_examples=500, deadline=None)
def test_whatever_a_config_holds_is_read_or_refused_in_one_line(family, key, value):
  try:
    config = ModelConfig.from_hf(testing.FAMILIES[family] | {key: value})
  except ValueError as error:
    assert "\n" not in str(error)
  else:
    assert config.num_layers >= 1 and config.vocab_size >= 1


@hypothesis.given(
  fields=st.dictionaries(
    st.sampled_from(sorted(ModelConfig.from_hf(CONFIG).to_json())), JSON, min_size=1, max_size=3
  )
)
@hypothesis.settings(
  max_examples=100,
  deadline=None,
  suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
def test_whatever_a_converted_checkpoint_says_is_read_or_refused(tmp_path, fields):
  marker = {"param_dtype": "float32", "config": ModelConfig.from_hf(CONFIG).to_json() | fields}
  (tmp_path / "rain_model.json").write_text(json.dumps(marker))
  try:
    checkpoint.read_config(tmp_path)
  except CheckpointError as error:
    assert str(error).isprintable()


@pytest.mark.parametrize(
  "marker, said",
  [
    ({}, "not a model description"),
    ({"param_dtype": "object", "config": {}}, "param_dtype = 'object'"),
    ({"param_dtype": ["float32"], "config": {}}, "param_dtype"),
    ({"param_dtype": "float32", "config": []}, "not a model description"),
    ({"param_dtype": "float32", "config": {"\x1b[31m": 1}}, "unknown model config fields"),
  ],
)
def test_a_converted_checkpoint_that_says_nothing_of_use_is_refused(tmp_path, marker, said):
  (tmp_path / "rain_model.json").write_text(json.dumps(marker))
  with pytest.raises(CheckpointError, match=said) as caught:
    checkpoint.read_config(tmp_path)
  assert str(caught.value).isprintable()


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
    ({"weight_map": {"a": "x" * 300}}, "not in the folder"),
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


@pytest.mark.parametrize("name", ["score.weight", "classifier.weight"])
def test_weights_of_a_classifier_are_named(tmp_path, name):
  folder = testing.write_checkpoint(tmp_path, "llama2")
  tensors = tensors_of(folder)
  head = tensors.pop("lm_head.weight")
  store(folder, tensors | {name: head[:2]})
  with pytest.raises(CheckpointError, match=f"{name} makes this a classifier"):
    hf.load(folder)


def test_a_folder_of_gguf_files_is_named(tmp_path):
  (tmp_path / "model-Q8.gguf").write_bytes(b"GGUF")
  with pytest.raises(CheckpointError, match="give the path of one, such as .*model-Q8.gguf"):
    hf.load(tmp_path)


@pytest.mark.parametrize("source", ["~nobody-of-this-name/model", "a\0b", "x" * 300, "\x1b[2J"])
def test_paths_that_cannot_be_are_refused_in_one_line(source):
  with pytest.raises((CheckpointError, OSError)) as caught:
    hf.load(source)
  assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
  "shape, dtype", [((), "f4"), ((96,), "f4"), ((96, 32), "i1"), ((9, 9), "f4")]
)
def test_a_tied_output_table_of_another_kind_is_refused(tmp_path, shape, dtype):
  folder = testing.write_checkpoint(tmp_path, "llama3")
  store(folder, tensors_of(folder) | {"lm_head.weight": np.ones(shape, dtype)})
  with pytest.raises(CheckpointError, match="lm_head.weight has (shape|dtype)"):
    hf.load(folder)


def test_a_tied_output_table_in_another_dtype_is_the_same_table(tmp_path, caplog):
  folder = testing.write_checkpoint(tmp_path, "llama3")
  tensors = tensors_of(folder)
  halves = tensors["model.embed_tokens.weight"].astype(ml_dtypes.bfloat16)
  both = {"model.embed_tokens.weight": halves.astype(np.float16), "lm_head.weight": halves}
  store(folder, tensors | both | {"lm_head.weight": halves.astype(np.float16)})
  assert hf.load(folder, param_dtype="float32").config.tie_embeddings
  store(
    folder,
    tensors | {"model.embed_tokens.weight": halves.astype(np.float32), "lm_head.weight": halves},
  )
  with caplog.at_level(logging.WARNING):
    assert hf.load(folder, param_dtype="float32").config.tie_embeddings
  assert not caplog.text


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_converted_weights_that_are_no_numbers_are_refused(tmp_path, dtype):
  model = hf.load(
    testing.write_checkpoint(tmp_path / "hf", "llama2"), param_dtype=dtype, compute_dtype="float32"
  )
  scale = model.params["final_norm"]["scale"]
  params = model.params | {"final_norm": {"scale": scale.at[0].set(np.nan)}}
  checkpoint.save_model(tmp_path / "ours", dataclasses.replace(model, params=params))
  with pytest.raises(CheckpointError, match="final_norm/scale holds values that are no finite"):
    checkpoint.load_model(tmp_path / "ours")


def test_values_that_a_smaller_dtype_cannot_hold_are_refused(tmp_path):
  folder = testing.write_checkpoint(tmp_path, "llama2")
  tensors = tensors_of(folder)
  name = "model.norm.weight"
  store(folder, tensors | {name: np.full_like(tensors[name], 3.4e38)})
  hf.load(folder, param_dtype="float32")
  with pytest.raises(CheckpointError, match=name):
    hf.load(folder, param_dtype="bfloat16")


@hypothesis.settings(
  max_examples=60,
  deadline=None,
  suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
@hypothesis.given(data=st.data())
def test_whatever_a_safetensors_file_begins_with_is_read_or_refused(tmp_path, data):
  folder = tmp_path / "model"
  if not folder.exists():
    testing.write_checkpoint(folder, "llama2")
    (tmp_path / "whole").write_bytes((folder / "model.safetensors").read_bytes())
  whole = (tmp_path / "whole").read_bytes()
  size = int.from_bytes(whole[:8], "little")
  header = json.loads(whole[8 : 8 + size])
  kind = data.draw(st.sampled_from(["entry", "bytes", "length", "cut"]))
  if kind == "entry":
    name = data.draw(st.sampled_from(sorted(header)))
    key = data.draw(st.sampled_from(["shape", "dtype", "data_offsets", None]))
    value = data.draw(JSON | st.just("F64") | st.just([0, 1 << 62]))
    header[name] = value if key is None else header[name] | {key: value}
    text = json.dumps(header).encode()
    written = len(text).to_bytes(8, "little") + text + whole[8 + size :]
  elif kind == "bytes":
    at = data.draw(st.integers(0, 8 + size - 1))
    written = whole[:at] + data.draw(st.binary(min_size=1, max_size=4)) + whole[at + 1 :]
  elif kind == "length":
    written = data.draw(st.binary(min_size=8, max_size=8)) + whole[8:]
  else:
    written = whole[: data.draw(st.integers(0, 400))]
  (folder / "model.safetensors").write_bytes(written)
  try:
    hf.load(folder, param_dtype="float32", compute_dtype="float32")
  except CheckpointError as error:
    assert str(error).isprintable()


@hypothesis.settings(
  max_examples=60,
  deadline=None,
  suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
@hypothesis.given(
  index=st.dictionaries(
    st.sampled_from(["weight_map", "metadata"]),
    JSON
    | st.dictionaries(
      st.text(max_size=5),
      st.sampled_from(
        ["model.safetensors", "..", "", ".", "/x", "a/../..", "config.json", "\0", "x" * 300]
      )
      | st.text(max_size=5),
      max_size=3,
    ),
  )
)
def test_whatever_an_index_holds_is_read_or_refused(tmp_path, index):
  folder = tmp_path / "model"
  if not folder.exists():
    testing.write_checkpoint(folder, "llama2")
  (folder / "model.safetensors.index.json").write_text(json.dumps(index))
  with pytest.raises(CheckpointError) as caught:  # none has all tensors
    hf.load(folder)
  assert str(caught.value).isprintable()
