"""Tests of LoRA adapters: parity with PEFT, and what is refused in one line."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from rain_jax import demo
from rain_jax.models import checkpoint, hf, llama, testing
from rain_jax.models.hf import CheckpointError
from rain_jax.runs import from_config
from tests.helpers import checkpoints

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
Q = "base_model.model.model.layers.{}.self_attn.q_proj.lora_{}.weight"
RANK = 4


def write_adapter(folder, changes=None, edit=None):
  """An adapter of the queries of each layer of `testing`'s tiny models."""
  draw = np.random.default_rng(0).normal
  tensors = {}
  for layer in range(3):
    tensors[Q.format(layer, "A")] = draw(size=(RANK, 32)).astype(np.float32)
    tensors[Q.format(layer, "B")] = draw(size=(32, RANK)).astype(np.float32)
  if edit:
    edit(tensors)
  config = {"peft_type": "LORA", "r": RANK, "lora_alpha": 8, "target_modules": ["q_proj"]}
  folder.mkdir(exist_ok=True)
  (folder / "adapter_config.json").write_text(json.dumps(config | (changes or {})))
  safetensors.numpy.save_file(tensors, folder / "adapter_model.safetensors")
  return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory):
  return testing.write_checkpoint(tmp_path_factory.mktemp("base"), "llama2")


def load(folder, adapter=None, dtype="float32"):
  return hf.load(folder, param_dtype=dtype, compute_dtype="float32", adapter=adapter)


@pytest.mark.parametrize(
  "family,more",
  [
    ("llama2", {"target_modules": ["q_proj", "v_proj"], "lora_alpha": 10}),
    (
      "llama3",
      {"target_modules": ALL, "layers_to_transform": [0, 2], "lora_alpha": 3, "use_rslora": True},
    ),
  ],
)
def test_parity_with_peft(family, more, tmp_path):
  torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
  transformers = pytest.importorskip("transformers")
  folder = testing.write_checkpoint(tmp_path / "base", family)
  theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
  lora = peft.LoraConfig(r=RANK, task_type="CAUSAL_LM", init_lora_weights=False, **more)
  theirs = peft.get_peft_model(theirs, lora).eval()
  theirs.save_pretrained(tmp_path / "adapter")
  tokens = np.random.default_rng(0).integers(0, 96, (2, 20))
  with torch.no_grad():
    want = theirs(torch.tensor(tokens)).logits.numpy()
  model = load(folder, tmp_path / "adapter")
  positions = jnp.broadcast_to(jnp.arange(20), tokens.shape)
  hidden, _ = llama.forward(model.graphdef, model.params, jnp.asarray(tokens), positions)
  got = np.asarray(llama.unembed(model.graphdef, model.params, hidden))
  assert np.max(np.abs(got - want)) / np.max(np.abs(want)) < 1e-4
  assert checkpoint.fingerprint(folder) != checkpoint.fingerprint(folder, tmp_path / "adapter")


def test_a_merged_matrix_is_that_of_the_formula(base, tmp_path):
  folder = write_adapter(tmp_path / "adapter")
  tensors = safetensors.numpy.load_file(folder / "adapter_model.safetensors")
  product = 2 * tensors[Q.format(1, "B")] @ tensors[Q.format(1, "A")]  # alpha / r
  before, after = (load(base, one).params["layers"] for one in (None, folder))
  moved = np.asarray(after["q"]["weight"][1] - before["q"]["weight"][1]).reshape(32, 32)
  np.testing.assert_allclose(moved.T, product, atol=1e-5)
  np.testing.assert_array_equal(after["k"]["weight"], before["k"]["weight"])
  eight = load(base, folder, "int8").params["layers"]["q"]
  whole = np.asarray(eight["weight"], np.float32) * np.asarray(eight["channel_scale"])[:, None]
  assert np.abs(whole - np.asarray(after["q"]["weight"])).max() < 0.05 * np.abs(product).max()


def test_an_adapter_is_a_part_of_the_fingerprint(base, tmp_path):
  prints = [checkpoint.fingerprint(base)]
  for number, (changes, edit) in enumerate(
    [
      ({}, None),
      ({"lora_alpha": 9}, None),
      ({}, lambda t: t.update({Q.format(0, "A"): t[Q.format(1, "A")]})),
    ]
  ):
    prints.append(
      checkpoint.fingerprint(base, write_adapter(tmp_path / str(number), changes, edit))
    )
  assert len(set(prints)) == 4


def test_a_run_loads_what_its_configuration_names(tmp_path):
  lora = tmp_path / "lora"
  checkpoints.write_adapter(lora, demo.MODEL_DIR)
  section = {"path": "demo", "dtype": "float32"}
  plain, adapted = (
    from_config.load_on({"model": section | more})
    for more in ({}, {"adapter": str(lora), "revision": ""})
  )
  assert plain.fingerprint != adapted.fingerprint
  before, after = (jax.tree.leaves(one.model.params) for one in (plain, adapted))
  same = [np.array_equal(a, b) for a, b in zip(before, after, strict=True)]
  assert not all(same) and any(same)


def _rename(old, new):
  return lambda tensors: tensors.update({new: tensors.pop(old)})


@pytest.mark.parametrize(
  "changes, edit, said",
  [
    ({"peft_type": "IA3"}, None, "peft_type = 'IA3', expected LORA"),
    ({"use_dora": True}, None, "use_dora = True is not supported"),
    ({"bias": "all"}, None, "bias = 'all'"),
    ({"modules_to_save": ["lm_head"]}, None, "modules_to_save = .'lm_head'. is not supported"),
    ({"fan_in_fan_out": True}, None, "fan_in_fan_out = True is not supported"),
    ({"rank_pattern": {"q_proj": 8}}, None, "rank_pattern = "),
    ({"init_lora_weights": "pissa"}, None, "init_lora_weights = 'pissa'"),
    ({"something_newer": {"a": 1}}, None, "something_newer = .* is not supported"),
    ({"r": 0}, None, "r = 0"),
    ({"r": "4"}, None, "r = '4'"),
    ({"lora_alpha": None}, None, "lora_alpha = None"),
    ({"use_rslora": "yes"}, None, "use_rslora = 'yes'"),
    ({"target_modules": ["q_proj", "v_proj"]}, None, "nothing for .*v_proj.weight"),
    ({}, lambda t: t.pop(Q.format(1, "A")), "q_proj.weight there is lora_B alone"),
    ({}, lambda t: [t.pop(Q.format(2, side)) for side in "AB"], "nothing for .*layers.2"),
    ({}, lambda t: t.clear(), "nothing for"),
    ({}, _rename(Q.format(0, "A"), Q.format(7, "A")), "layers.7.* has no place"),
    ({}, _rename(Q.format(0, "A"), "base_model.model.lm_head.weight"), "lm_head.* has no place"),
    ({}, lambda t: t.update({Q.format(0, "A"): np.ones((4, 64), "f4")}), "shapes .* make no"),
    ({}, lambda t: t.update({Q.format(0, "A"): np.ones((4, 32), "i4")}), "dtype I32"),
    ({}, lambda t: t.update({Q.format(0, "A"): np.full((4, 32), np.nan, "f4")}), "no finite"),
  ],
)
def test_other_adapters_are_refused_in_one_line(base, tmp_path, changes, edit, said):
  with pytest.raises(CheckpointError, match=said) as caught:
    load(base, write_adapter(tmp_path / "adapter", changes, edit))
  assert "\n" not in str(caught.value)


def test_what_is_no_adapter_is_named(base, tmp_path):
  adapter = write_adapter(tmp_path / "adapter")
  with pytest.raises(CheckpointError, match="an adapter, not a model: .*config.model.adapter"):
    load(adapter)
  with pytest.raises(CheckpointError, match="no adapter_config.json"):
    load(base, base)
  (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
  with pytest.raises(CheckpointError, match="no adapter_model.safetensors; .*pickled"):
    load(base, adapter)
  (adapter / "adapter_model.safetensors").write_bytes(b"\xff" * 50)
  with pytest.raises(CheckpointError, match="truncated or damaged"):
    load(base, adapter)
  checkpoint.save_model(tmp_path / "converted", load(base))
  with pytest.raises(CheckpointError, match="merged into safetensors"):
    checkpoint.load_model(tmp_path / "converted", adapter=write_adapter(tmp_path / "again"))
