"""Tests of turning pickled weights into safetensors: the same tensors, and no code that runs."""

import json
import pathlib
import pickle
import runpy
import sys

import pytest
import safetensors.numpy
from absl import flags

from rain_jax.models import hf, testing
from rain_jax.models.hf import CheckpointError
from tests.helpers.checkpoints import assert_same_params
from tests.helpers.repository import ROOT

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def convert():
  before = set(flags.FLAGS)
  sys.path.insert(0, str(ROOT / "scripts"))
  try:
    yield runpy.run_path(str(ROOT / "scripts" / "unpickle_checkpoint.py"))["convert"]
  finally:
    sys.path.remove(str(ROOT / "scripts"))
    for name in set(flags.FLAGS) - before:
      delattr(flags.FLAGS, name)


def pickled(folder, parts, **how):
  """A tiny checkpoint with its weights as pickles in so many files, and its parameters."""
  testing.write_checkpoint(folder, "llama2")
  params = hf.load(folder, param_dtype="float32", compute_dtype="float32").params
  weights = folder / "model.safetensors"
  tensors = {name: torch.tensor(t) for name, t in safetensors.numpy.load_file(weights).items()}
  weights.unlink()
  names, places = sorted(tensors), {}
  for part in range(parts):
    file = f"pytorch_model-{part + 1:05d}-of-{parts:05d}.bin" if parts > 1 else "pytorch_model.bin"
    torch.save({name: tensors[name] for name in names[part::parts]}, folder / file, **how)
    places.update(dict.fromkeys(names[part::parts], file))
  if parts > 1:
    index = json.dumps({"weight_map": places})
    (folder / "pytorch_model.bin.index.json").write_text(index)
  (folder / "tokenizer.json").write_text("{}")
  return params


@pytest.mark.parametrize(
  "parts, how", [(1, {}), (3, {}), (1, {"_use_new_zipfile_serialization": False})]
)
def test_the_same_parameters_come_out(convert, tmp_path, parts, how):
  params = pickled(tmp_path / "bin", parts, **how)
  written = convert(tmp_path / "bin", tmp_path / "out")
  assert len(written) == parts and (tmp_path / "out" / "tokenizer.json").is_file()
  assert_same_params(hf.load(tmp_path / "out", param_dtype="float32").params, params)
  assert not [path for path in (tmp_path / "out").iterdir() if path.suffix in (".bin", ".part")]
  with pytest.raises(CheckpointError, match="holds model.* already"):
    convert(tmp_path / "bin", tmp_path / "out")


def test_views_and_shared_tensors_are_written_as_they_are(convert, tmp_path):
  whole = torch.arange(12.0).reshape(3, 4)
  torch.save({"a": whole, "tied": whole, "turned": whole.T}, tmp_path / "pytorch_model.bin")
  convert(tmp_path, tmp_path)
  found = safetensors.numpy.load_file(tmp_path / "model.safetensors")
  assert found["tied"].tolist() == found["a"].tolist() == whole.tolist()
  assert found["turned"].tolist() == whole.T.tolist()


def test_an_adapter_is_converted(convert, tmp_path):
  torch.save({"lora": torch.ones(2, 3)}, tmp_path / "adapter_model.bin")
  assert convert(tmp_path, tmp_path) == ["adapter_model.safetensors"]


class _Code:
  """What runs when a careless reader opens the file."""

  def __reduce__(self):
    return pathlib.Path("ran").touch, ()


def _index(names):
  return lambda folder: (folder / "pytorch_model.bin.index.json").write_text(json.dumps(names))


DAMAGES = {
  "code": (lambda f: torch.save({"a": _Code()}, f / "pytorch_model.bin"), "may be code"),
  "plain pickle": (
    lambda f: (f / "pytorch_model.bin").write_bytes(pickle.dumps(_Code())),
    "may be code",
  ),
  "cut": (
    lambda f: (f / "pytorch_model.bin").write_bytes((f / "pytorch_model.bin").read_bytes()[:3000]),
    "damaged",
  ),
  "empty": (lambda f: (f / "pytorch_model.bin").write_bytes(b""), "damaged"),
  "list": (lambda f: torch.save([torch.ones(2)], f / "pytorch_model.bin"), "tensors by name"),
  "nested": (lambda f: torch.save({"model": {}}, f / "pytorch_model.bin"), "tensors by name"),
  "nothing": (lambda f: (f / "pytorch_model.bin").unlink(), "no pytorch_model.bin"),
  "outside": (_index({"weight_map": {"a": "../x.bin"}}), "names no .bin files of this folder"),
  "missing": (_index({"weight_map": {"a": "pytorch_model-2.bin"}}), "pytorch_model-2.bin, which"),
}


@pytest.mark.parametrize("damage, said", DAMAGES.values(), ids=DAMAGES.keys())
def test_what_is_refused_is_refused_in_one_line(convert, tmp_path, monkeypatch, damage, said):
  monkeypatch.chdir(tmp_path)
  pickled(tmp_path / "bin", 1)
  damage(tmp_path / "bin")
  with pytest.raises(CheckpointError, match=said) as caught:
    convert(tmp_path / "bin", tmp_path / "out")
  assert "\n" not in str(caught.value)
  assert not (tmp_path / "ran").exists() and not list(tmp_path.glob("out/*.safetensors"))
