"""A small made-up world with two small trained LLaMAs: see `rain_jax.demo.world` and `traps`."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent
MODEL_DIR = ROOT / "model"
"""The trained checkpoint, in Hugging Face format."""
TRAPS_DIR = ROOT / "model_traps"
"""The same model, trained on responses with traps instead; see `rain_jax.demo.traps`."""
MODELS = {"demo": MODEL_DIR, "demo:traps": TRAPS_DIR}
"""Checkpoints that come with the package, by the names that users give them."""
PROMPTS_DIR = ROOT / "prompts"
"""Held-out prompts, `<kind>.jsonl` for each kind of `rain_jax.demo.world.KINDS`."""
DATA_DIR = ROOT / "data"
"""The same prompts in the formats of the field's data sets, see `rain_jax.demo.datasets`."""
