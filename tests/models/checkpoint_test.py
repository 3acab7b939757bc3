"""Tests of converted checkpoints, of the script that makes them, and of sharded models."""

import jax
import jax.numpy as jnp
import pytest

from rain_jax.models import checkpoint, hf, testing
from rain_jax.models.hf import CheckpointError
from tests.helpers import checkpoints, gguf_writer, scripts


def converted(tmp_path, family="llama2", dtype="float32"):
  source = testing.write_checkpoint(tmp_path / "source", family)
  (source / "tokenizer.json").write_text("{}")
  (source / "tokenizer_config.json").write_text("{}")
  model = hf.load(source, param_dtype=dtype, compute_dtype="float32")
  checkpoint.save_model(tmp_path / "converted", model, source)
  return model, tmp_path / "converted"


@pytest.mark.parametrize("family", ["llama1", "llama3", "qwen2_window"])
def test_round_trip(family, tmp_path):
  want, folder = converted(tmp_path, family)
  got = checkpoint.load_model(folder, compute_dtype="float32")
  assert (got.config, got.graphdef) == (want.config, want.graphdef)
  checkpoints.assert_same_params(got.params, want.params)


def test_a_converted_folder_is_all_that_is_needed(tmp_path):
  _, folder = converted(tmp_path)
  names = {path.name for path in folder.iterdir()}
  assert names == {
    "params",
    "rain_model.json",
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
  }


def test_dtype_on_loading(tmp_path):
  want, folder = converted(tmp_path)
  got = checkpoint.load_model(folder, param_dtype="bfloat16")
  checkpoints.assert_same_params(
    got.params, jax.tree.map(lambda a: a.astype(jnp.bfloat16), want.params)
  )
  source = checkpoint.load_model(tmp_path / "source")
  checkpoints.assert_same_params(source.params, got.params)


def test_int8_round_trip(tmp_path):
  want, folder = converted(tmp_path, dtype="int8")
  checkpoints.assert_same_params(checkpoint.load_model(folder).params, want.params)
  with pytest.raises(CheckpointError, match="holds int8 weights, asked for bfloat16"):
    checkpoint.load_model(folder, param_dtype="bfloat16")


def test_fingerprint_names_the_weights(tmp_path):
  first = checkpoint.fingerprint(testing.write_checkpoint(tmp_path / "a", "llama2"))
  assert len(first) == 64
  assert first == checkpoint.fingerprint(testing.write_checkpoint(tmp_path / "b", "llama2"))
  other = testing.write_checkpoint(tmp_path / "c", "llama2", seed=1)
  assert first != checkpoint.fingerprint(other)
  _, folder = converted(tmp_path)
  before = checkpoint.fingerprint(folder)
  assert before != first
  assert before == checkpoint.fingerprint(folder)


def test_a_checkpoint_is_not_overwritten(tmp_path):
  model, folder = converted(tmp_path)
  with pytest.raises(CheckpointError, match="holds a checkpoint already"):
    checkpoint.save_model(folder, model)


def _truncate_params(folder):
  for path in folder.glob("params/**/d/*"):
    path.write_bytes(path.read_bytes()[:20])


def _lose_params(folder):
  (folder / "params").rename(folder / "elsewhere")


# Orbax abandons its other reads after the first failure, which Python reports when it exits them.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
  "damage, message",
  [
    (_truncate_params, "incomplete or damaged"),
    (_lose_params, "no params beside it"),
    (lambda f: (f / "rain_model.json").write_text("{}"), "not a model description"),
    (lambda f: (f / "rain_model.json").write_text("{"), "not valid JSON"),
    (lambda f: (f / "rain_model.json").unlink(), "no model.safetensors"),
  ],
)
def test_damaged_folders_fail_in_one_line(damage, message, tmp_path):
  _, folder = converted(tmp_path)
  damage(folder)
  with pytest.raises(CheckpointError, match=message) as error:
    checkpoint.load_model(folder)
  assert "\n" not in str(error.value)


def test_script_converts(tmp_path):
  source = testing.write_checkpoint(tmp_path / "source", "llama3")
  done = scripts.run(
    "convert_checkpoint.py",
    f"--source={source}",
    f"--target={tmp_path / 'target'}",
    "--dtype=float32",
  )
  assert done.returncode == 0, done.stderr
  assert checkpoint.fingerprint(tmp_path / "target") in done.stdout
  checkpoints.assert_same_params(
    checkpoint.load_model(tmp_path / "target").params, hf.load(source, param_dtype="float32").params
  )


def test_script_fails_in_one_line(tmp_path):
  done = scripts.run("convert_checkpoint.py", f"--source={tmp_path}", "--target=unused")
  assert done.returncode == 1
  assert done.stderr.strip().splitlines()[-1].startswith("error: ")
  assert "no config.json" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow
def test_models_on_meshes_of_eight_devices(tmp_path):
  """Runs checkpoint_sharded.py, since the number of devices is fixed when JAX starts."""
  for family in ("llama2", "qwen2"):
    testing.write_checkpoint(tmp_path / family, family)
  # Shards of it begin within blocks of the file.
  config = testing.FAMILIES["llama2"] | {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
  }
  hf.save(tmp_path / "wide", config, testing.random_model("llama2", config=config).params)
  gguf_writer.write(tmp_path / "model.gguf", tmp_path / "wide", kind="Q6_K")
  scripts.on_eight_devices("models/checkpoint_sharded.py", str(tmp_path))
