"""LLaMA-family language models in flax.nnx; knows nothing of search."""
