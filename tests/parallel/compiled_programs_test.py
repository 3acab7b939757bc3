"""Programs compile for TPUs and cards that are not there: who speaks to whom, and the bytes of a call.

`python -m pytest -m slow tests/parallel/compiled_programs_test.py` compiles searches, which takes
minutes.
"""

import importlib.util
import os

import pytest

from tests.helpers import scripts

# Folders that the compilers are in, as in .ci/run: where they are installed, all programs look for
# such chips.
FOLDERS = [os.environ.get("LIBTPU_FOLDER", ""), os.environ.get("CUDA_PLUGIN_FOLDER", "")]
needs_libtpu = pytest.mark.skipif(
  not FOLDERS[0] and importlib.util.find_spec("libtpu") is None,
  reason="libtpu compiles for TPUs; not installed",
)
needs_plugin = pytest.mark.skipif(
  not FOLDERS[1] and importlib.util.find_spec("jax_cuda12_plugin") is None,
  reason="jax-cuda12-plugin compiles for NVIDIA cards; not installed",
)


@needs_libtpu
@pytest.mark.parametrize(
  "program,tensor,size",
  [
    ("sampling", 2, "large"),
    pytest.param("search", 1, "small", marks=pytest.mark.slow),
    pytest.param("search", 2, "large", marks=pytest.mark.slow),
    pytest.param("search", 4, "small", marks=pytest.mark.slow),
  ],
)
def test_a_program_compiles_for_tpu_meshes(program, tensor, size):
  _check("v5e:2x2", program, tensor, size)


@needs_plugin
@pytest.mark.parametrize(
  "topology,program,tensor,size",
  [
    ("h100", "sampling", 1, "large"),
    ("h100:2", "sampling", 1, "large"),
    ("h100:2", "sampling", 2, "large"),
    pytest.param("h100", "search", 1, "large", marks=pytest.mark.slow),
    pytest.param("h200:2", "search", 2, "small", marks=pytest.mark.slow),
    pytest.param("h100", "drafts", 1, "small", marks=pytest.mark.slow),
  ],
)
def test_a_program_compiles_for_cards(topology, program, tensor, size):
  _check(topology, program, tensor, size)


def _check(topology, program, tensor, size):
  arguments = topology, program, str(tensor), size
  scripts.checked("parallel/compiled_programs.py", *arguments, limit=900, folders=FOLDERS)
