"""Programs compile for TPUs whose mesh splits the model: who speaks to whom, and the bytes of a call.

`python -m pytest -m slow tests/parallel/tpu_programs_test.py` compiles searches, which takes minutes.
"""

import importlib.util
import os

import pytest

from tests.helpers import scripts

# A folder that libtpu is in, as in .ci/run: where it is installed, all programs look for TPUs.
FOLDER = os.environ.get("LIBTPU_FOLDER", "")
needs_libtpu = pytest.mark.skipif(
  not FOLDER and importlib.util.find_spec("libtpu") is None,
  reason="libtpu compiles for TPUs; not installed",
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
  arguments = program, str(tensor), size
  scripts.checked("parallel/tpu_programs.py", *arguments, limit=900, folders=[FOLDER])
