"""Train a demo model: a small LLaMA that knows right from wrong and errs anyway.

    python scripts/train_demo.py --out=rain_jax/demo
    python scripts/train_demo.py --corpus=traps --init=rain_jax/demo/model --out=rain_jax/demo

write `model/` (Hugging Face checkpoint and tokenizer; `model_traps/` of the corpus with traps) and
`prompts/` (held-out prompts). Needs PyTorch and transformers, which the library itself does not;
takes about 40 minutes on one core.

Two things are learned side by side. *Responses* are learned as plain text, flaws included, so that
the sampled model errs as often as the world does. *Verdicts* are learned on the preference
templates as the search renders them: prefix, conversation, part of a response, suffix, then the
label; only the label is trained on, so no verdict text ever turns up in a sampled response. One row
carries many verdicts: every suffix hangs off its own cut of the response by way of the attention
mask, and the prefix is computed once per batch.
"""

from __future__ import annotations

import json
import pathlib
import random
import time

import demo_data
import tokenizers
import torch
import transformers
from absl import app, flags, logging

from rain_jax.demo import world

FLAGS = flags.FLAGS
ROOT = pathlib.Path(__file__).resolve().parent.parent
flags.DEFINE_string(
  "out", str(ROOT / "rain_jax" / "demo"), "Folder that receives the model's and prompts/."
)
flags.DEFINE_enum("corpus", "plain", list(demo_data.CORPORA), "What the model learns.")
flags.DEFINE_integer("seed", 0, "Seed of texts and weights.")
flags.DEFINE_integer("steps", 3600, "Optimizer steps.")
flags.DEFINE_float("learning_rate", 4e-3, "Peak learning rate.")
flags.DEFINE_string("init", "", "Checkpoint folder to go on from, with its tokenizer.")
flags.DEFINE_integer("threads", 1, "Threads for PyTorch.")

PROBED_LAYERS, PROBE_WEIGHT = (2, 3), 0.3
PROMPT_COUNTS = {"harmful": 100, "benign": 50, "question": 100, "review": 100}


def build_model(tokenizer: tokenizers.Tokenizer) -> transformers.LlamaForCausalLM:
  """About a million parameters, tied embeddings, grouped-query attention."""
  return transformers.LlamaForCausalLM(
    transformers.LlamaConfig(
      vocab_size=tokenizer.get_vocab_size(),
      hidden_size=128,
      intermediate_size=384,
      num_hidden_layers=4,
      num_attention_heads=4,
      num_key_value_heads=2,
      head_dim=32,
      max_position_embeddings=1024,
      rms_norm_eps=1e-5,
      tie_word_embeddings=True,
      bos_token_id=tokenizer.token_to_id(demo_data.BOS),
      eos_token_id=tokenizer.token_to_id(demo_data.EOS),
    )
  )


def response_loss(
  model: transformers.LlamaForCausalLM,
  probes: torch.nn.ModuleList,
  batch: demo_data.ResponseBatch,
) -> tuple[torch.Tensor, torch.Tensor]:
  """Mean cross-entropy of the responses' tokens, and of probes for flaws on inner layers.

  The probes are thrown away after training. They make the model notice a flaw where it happens,
  which the verdicts then only have to look up; without them those are learned several times more
  slowly.
  """
  output = model.model(input_ids=batch.ids, use_cache=False, output_hidden_states=True)
  chosen = batch.targets != demo_data.IGNORE
  text = torch.nn.functional.cross_entropy(
    model.lm_head(output.last_hidden_state[chosen]), batch.targets[chosen]
  )
  flaw_logits = torch.stack(
    [
      probe(output.hidden_states[layer][chosen])[:, 0]
      for layer, probe in zip(PROBED_LAYERS, probes)
    ]
  )
  flaws = torch.nn.functional.binary_cross_entropy_with_logits(
    flaw_logits, batch.flaws[chosen].float().expand_as(flaw_logits)
  )
  return text, flaws


def verdict_loss(
  model: transformers.LlamaForCausalLM, batch: demo_data.VerdictBatch
) -> tuple[torch.Tensor, float]:
  """Mean cross-entropy of the labels, and the share that is most probable."""
  cache = model.model(input_ids=batch.prefix, use_cache=True).past_key_values
  cache.batch_repeat_interleave(len(batch.ids))
  hidden = model.model(
    input_ids=batch.ids,
    attention_mask=batch.mask,
    position_ids=batch.positions,
    past_key_values=cache,
    use_cache=True,
  ).last_hidden_state
  chosen = batch.labels != demo_data.IGNORE
  logits, labels = model.lm_head(hidden[chosen]), batch.labels[chosen]
  return (
    torch.nn.functional.cross_entropy(logits, labels),
    (logits.argmax(-1) == labels).float().mean().item(),
  )


def train(
  model: transformers.LlamaForCausalLM,
  tokenizer: tokenizers.Tokenizer,
  preferences: dict[str, dict],
  rng: random.Random,
  corpus: demo_data.Corpus,
) -> None:
  """Warm up, then cosine to zero; every step takes a batch of responses and two of verdicts."""
  steps = FLAGS.steps
  probes = torch.nn.ModuleList(torch.nn.Linear(model.config.hidden_size, 1) for _ in PROBED_LAYERS)
  parameters = [*model.parameters(), *probes.parameters()]
  optimizer = torch.optim.AdamW(
    parameters, FLAGS.learning_rate, betas=(0.9, 0.98), weight_decay=0.05
  )
  warmup = min(100, steps)
  schedule = torch.optim.lr_scheduler.SequentialLR(
    optimizer,
    [
      torch.optim.lr_scheduler.LinearLR(optimizer, 0.01, total_iters=warmup),
      torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps - warmup)),
    ],
    [warmup],
  )
  began, seen = time.time(), []
  for step in range(steps):
    responses = demo_data.response_batch(rng, tokenizer, corpus)
    text_loss, flaw_loss = response_loss(model, probes, responses)
    verdicts = []
    for group in demo_data.PREFERENCE_GROUPS:
      preference = preferences[rng.choice(group)]
      batch = demo_data.verdict_batch(rng, tokenizer, preference, corpus)
      verdicts.append(verdict_loss(model, batch))
    label_loss = sum((loss for loss, _ in verdicts), torch.zeros(())) / len(verdicts)
    optimizer.zero_grad()
    (text_loss + label_loss + PROBE_WEIGHT * flaw_loss).backward()
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()
    schedule.step()
    accuracies = [accuracy for _, accuracy in verdicts]
    seen.append((text_loss.item(), flaw_loss.item(), label_loss.item(), *accuracies))
    if (step + 1) % 50 == 0:
      means = [sum(column) / len(seen) for column in zip(*seen)]
      logging.info(
        "step %d/%d: text loss %.4f, flaw loss %.4f, label loss %.4f,"
        " accuracy on requests %.4f, on the rest %.4f, %.0f s",
        step + 1,
        steps,
        *means,
        time.time() - began,
      )
      seen = []


def save(
  model: transformers.LlamaForCausalLM, tokenizer: tokenizers.Tokenizer, folder: pathlib.Path
) -> None:
  """Write a checkpoint that `AutoTokenizer` and any LLaMA loader read."""
  model.generation_config = transformers.GenerationConfig(
    bos_token_id=model.config.bos_token_id,
    eos_token_id=model.config.eos_token_id,
    pad_token_id=model.config.eos_token_id,
    do_sample=True,
    temperature=1.0,
    top_k=0,
  )
  model.save_pretrained(folder)
  transformers.PreTrainedTokenizerFast(
    tokenizer_object=tokenizer,
    bos_token=demo_data.BOS,
    eos_token=demo_data.EOS,
    pad_token=demo_data.EOS,
    model_max_length=model.config.max_position_embeddings,
    clean_up_tokenization_spaces=False,
    preference_form="letters",  # see rain_jax.preferences.FORM_KEY
  ).save_pretrained(folder)


def write_prompts(folder: pathlib.Path) -> None:
  """Write the held-out prompts, one file per kind."""
  folder.mkdir(parents=True, exist_ok=True)
  for kind, count in PROMPT_COUNTS.items():
    lines = [json.dumps(record) for record in world.held_out_prompts(kind, count)]
    (folder / f"{kind}.jsonl").write_text("\n".join(lines) + "\n", "utf-8")


def main(argv: list[str]) -> None:
  """Trains from nothing, or from `--init`, and writes held-out prompts and the checkpoint."""
  del argv
  torch.set_num_threads(FLAGS.threads)
  torch.manual_seed(FLAGS.seed)
  rng = random.Random(FLAGS.seed)
  out, corpus = pathlib.Path(FLAGS.out), demo_data.CORPORA[FLAGS.corpus]
  preferences = demo_data.load_preferences()
  if FLAGS.init:
    tokenizer = tokenizers.Tokenizer.from_file(f"{FLAGS.init}/tokenizer.json")
    model = transformers.LlamaForCausalLM.from_pretrained(FLAGS.init, dtype=torch.float32)
  else:
    tokenizer = demo_data.train_tokenizer(rng, preferences, corpus)
    model = build_model(tokenizer)
  logging.info(
    "%d parameters, %d tokens",
    sum(p.numel() for p in model.parameters()),
    tokenizer.get_vocab_size(),
  )
  write_prompts(out / "prompts")
  train(model, tokenizer, preferences, rng, corpus)
  save(model, tokenizer, out / corpus.model.name)


if __name__ == "__main__":
  app.run(main)
