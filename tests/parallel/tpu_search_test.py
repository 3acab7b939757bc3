"""The search compiles for TPUs whose mesh splits the model, and speaks to no other shard."""

import importlib.util

import pytest

from tests.helpers import scripts

# Without a machine to ask, libtpu is told what it would be.
ENVIRONMENT = {
  "TPU_SKIP_MDS_QUERY": "1",
  "TPU_ACCELERATOR_TYPE": "v5litepod-8",
  "TPU_WORKER_HOSTNAMES": "localhost",
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}

needs_libtpu = pytest.mark.skipif(
  importlib.util.find_spec("libtpu") is None, reason="libtpu compiles for TPUs; not installed"
)


@needs_libtpu
def test_a_search_compiles_where_a_tpu_mesh_splits_the_model():
  _compiled(2)


@needs_libtpu
@pytest.mark.slow
@pytest.mark.parametrize("tensor", [1, 4])
def test_a_search_compiles_for_other_tpu_meshes(tensor):
  _compiled(tensor)


def _compiled(tensor):
  scripts.checked("parallel/tpu_search.py", str(tensor), limit=300, **ENVIRONMENT)
