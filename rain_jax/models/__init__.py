"""LLaMA-family language models in flax.nnx; knows nothing of search."""

from rain_jax.models.attention import KV as KV
from rain_jax.models.attention import NO_POSITION as NO_POSITION
from rain_jax.models.attention import Segment as Segment
from rain_jax.models.attention import each_layer as each_layer
from rain_jax.models.checkpoint import fingerprint as fingerprint
from rain_jax.models.checkpoint import load_model as load_model
from rain_jax.models.checkpoint import save_model as save_model
from rain_jax.models.config import ModelConfig as ModelConfig
from rain_jax.models.hf import CheckpointError as CheckpointError
from rain_jax.models.llama import Model as Model
from rain_jax.models.llama import forward as forward
from rain_jax.models.llama import init_model as init_model
from rain_jax.models.llama import unembed as unembed
from rain_jax.models.llama import unstack as unstack
