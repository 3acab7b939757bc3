"""What several test modules share."""

import os
import pathlib
import subprocess
import sys

import jax
import pytest
import tokenizers
import transformers

from rain_jax.models import hf
from rain_jax.models import testing as models

ROOT = pathlib.Path(__file__).resolve().parents[1]
MOST_MAPS = 30_000

# Compilations are most of the suite's time, and many programs are compiled twice.
jax.config.update("jax_compilation_cache_dir", str(ROOT / ".jax_cache"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
# Most programs run once or twice on tiny shapes: compiling them well would take twice as long.
jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture(autouse=True)
def room_for_programs():
  """Drops compiled programs before they are too many for a process.

  Each takes dozens of memory maps, of which Linux admits 65,530 (`vm.max_map_count`): at the limit
  the compiler aborts.
  """
  yield
  maps = pathlib.Path("/proc/self/maps")
  if maps.exists() and maps.read_bytes().count(b"\n") > MOST_MAPS:
    jax.clear_caches()


def on_eight_devices(script, *arguments, limit=900):
  """Runs a script of this folder on virtual devices, at most `limit` seconds: its checks pass."""
  # What is compiled runs for seconds: optimising it would take longer.
  flags = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
  tests = ROOT / "tests"
  env = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": f"{ROOT}:{tests}"}
  done = subprocess.run(
    [sys.executable, str(tests / script), *arguments],
    env=env,
    capture_output=True,
    text=True,
    timeout=limit,
  )
  assert done.returncode == 0 and "all checks passed" in done.stdout, done.stdout + done.stderr
  print(done.stdout)


@pytest.fixture(scope="session")
def data_dir() -> pathlib.Path:
  """Real prompts and the real LLaMA tokenizer; skips where they are absent."""
  folder = pathlib.Path(os.environ.get("RAIN_JAX_TEST_DATA", ROOT.parent / "shared" / "data"))
  if not folder.is_dir():
    pytest.skip(f"no data folder {folder}; set RAIN_JAX_TEST_DATA")
  return folder


@pytest.fixture(scope="session")
def bpe_tokenizer():
  """A byte-level BPE of 300 tokens with `<s>` (added by encoding) and `</s>`."""
  bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
  bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
  bpe.decoder = tokenizers.decoders.ByteLevel()
  trainer = tokenizers.trainers.BpeTrainer(
    vocab_size=300,
    special_tokens=["<s>", "</s>"],
    show_progress=False,
    initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
  )
  words = (
    "the cat, sat. on a mat; and: then? it\nwas Human: gone far away to see us all again Yes No"
  )
  bpe.train_from_iterator([words] * 4, trainer)
  bpe.post_processor = tokenizers.processors.TemplateProcessing(
    single="<s> $A", special_tokens=[("<s>", 0)]
  )
  return transformers.PreTrainedTokenizerFast(
    tokenizer_object=bpe, bos_token="<s>", eos_token="</s>"
  )


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory, bpe_tokenizer) -> pathlib.Path:
  """Folder of a tiny random LLaMA with that tokenizer."""
  folder = tmp_path_factory.mktemp("checkpoint")
  config = dict(models.FAMILIES["llama2"]) | {
    "vocab_size": len(bpe_tokenizer),
    "max_position_embeddings": 2048,
    "eos_token_id": 1,
  }
  model = models.random_model("llama2", config=config)
  hf.save(folder, config, model.params)
  bpe_tokenizer.save_pretrained(folder)
  return folder
