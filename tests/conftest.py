"""What several test modules share."""

import os
import pathlib

import jax
import jaxlib
import pytest

from rain_jax.models import hf
from tests.helpers import checkpoints
from tests.helpers.repository import ROOT

MOST_MAPS = 30_000

# PyTorch's threads wait for each other where tests keep every core busy; its models here are tiny.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# XLA's older emitters take two thirds of the time for a search. A flag that XLA does not know ends the
# process, so this one is given only to versions that have it.
OLDER_EMITTERS = "--xla_cpu_use_fusion_emitters=false"
given = os.environ.get("XLA_FLAGS", "")
if jaxlib.__version__.startswith("0.10.") and OLDER_EMITTERS not in given:
  os.environ["XLA_FLAGS"] = f"{given} {OLDER_EMITTERS}".strip()

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
  words = (
    "the cat, sat. on a mat; and: then? it\nwas Human: gone far away to see us all again Yes No"
  )
  return checkpoints.byte_bpe(300, [words] * 4)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory, bpe_tokenizer) -> pathlib.Path:
  """Folder of a tiny random LLaMA with that tokenizer."""
  folder = tmp_path_factory.mktemp("checkpoint")
  model, config = checkpoints.llama(bpe_tokenizer, 2048)
  hf.save(folder, config, model.params)
  bpe_tokenizer.save_pretrained(folder)
  return folder


@pytest.fixture(scope="session")
def judge_checkpoint(tmp_path_factory) -> pathlib.Path:
  """Folder of a tiny random LLaMA that answers with the judges' labels and little else."""
  folder = tmp_path_factory.mktemp("judge")
  checkpoints.write_judge(folder)
  return folder
