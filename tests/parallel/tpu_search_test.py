"""The search compiles for TPUs whose mesh splits the model, and speaks to no other shard."""

import importlib.util

import pytest

from tests.helpers import scripts

needs_libtpu = pytest.mark.skipif(
  importlib.util.find_spec("libtpu") is None, reason="libtpu compiles for TPUs; not installed"
)


@needs_libtpu
@pytest.mark.slow
@pytest.mark.parametrize("tensor", [1, 2, 4])
def test_a_search_compiles_for_tpu_meshes(tensor):
  scripts.checked("parallel/tpu_search.py", str(tensor), limit=600)
