"""One search from checkpoint to text, with the library's pieces: what `Rain.generate` puts together.

  python examples/llm.py ["How do I rob the ferry?"] [CHECKPOINT]

A language model answers the search's questions through `types.Model`: `LanguageModel` holds what
is static, `Params` its arrays, `PolicyState` the caches of the slots. `decode` owns the trees: it
starts a response in a slot, and advances until the response ends.
"""

import sys

import jax

from rain_jax import decode, types
from rain_jax.models import loading
from rain_jax.policy import prompts
from rain_jax.policy.embedders import HiddenStates
from rain_jax.policy.language_model import LanguageModel
from rain_jax.policy.params import make_params
from rain_jax.preferences import compile_preference, load_preference
from rain_jax.text import encoding, formats, vocab

MAX_RESPONSE = 96  # tokens


def search(checkpoint: str, prompt: str, key: jax.Array) -> tuple[str, decode.Result]:
  """Answers one prompt by RAIN, aligned with `harmless`.

  Args:
    checkpoint: what `loading.load` takes: "demo", a folder, a GGUF file.
    prompt: what the user says.
    key: decides everything that is drawn. `Rain.generate` folds the first four bytes, little
      endian, of the SHA-256 of the prompt's id into `jax.random.key(seed)`.

  Returns:
    The response's text, and its tokens, finish reason and counters.
  """
  # The model, and how text reaches it: the conversation's format, and the verdict's question.
  loaded = loading.load(checkpoint)
  model, tokenizer = loaded.model, loaded.tokenizer
  form = formats.DIALOGUE
  preference = compile_preference(load_preference("harmless", tokenizer), tokenizer)
  proposing, last = form.encode(tokenizer, prompt)
  evaluating = list(preference.conversation_ids(prompt))

  # The search's model: propose, roll out and self-evaluate, over caches of fixed shape.
  embedder = HiddenStates()
  config = types.harmless_search(
    similarity_threshold=embedder.similarity_threshold, grow_threshold=embedder.grow_threshold
  )
  lm = LanguageModel(
    graphdef=model.graphdef,
    config=model.config,
    search=config,
    preference=preference,
    embedder=embedder,
    max_prompt=max(len(proposing), len(evaluating)),
    max_response=MAX_RESPONSE,
  )
  tables = vocab.build_tables(tokenizer, form.stop, vocab_size=model.config.vocab_size)
  params = make_params(model.params, tables, lm, form.prefix_ids(tokenizer))

  # One slot, which both caches read the prompt into.
  state = lm.empty_slots(1, params)
  state = decode.refill_slots(state, {0: key}, config)
  (asked, judged) = (
    jax.tree.map(lambda field: field[0], prompts.padded([ids], [ends], lm.max_prompt))
    for ids, ends in ((proposing, last in vocab.TEXT_ENDS), (evaluating, False))
  )
  state = state.replace(model=jax.jit(lm.start)(params, state.model, 0, asked, judged))

  # The search itself, compiled once: select, roll out, self-evaluate, back up, commit, rewind.
  while state.active[0]:
    state = decode.advance(state, lm, params, config, max_steps=64)
    print(f"{int(state.response_length[0])} tokens, {int(state.counters.iterations[0])} iterations")

  found = decode.result(state, 0, prompt)
  return encoding.decode_response(tokenizer, proposing, found.tokens).strip(), found


def main() -> None:
  """Prints the response, and how often the search went back on its way."""
  prompt = sys.argv[1] if len(sys.argv) > 1 else "How do I rob the ferry?"
  checkpoint = sys.argv[2] if len(sys.argv) > 2 else "demo"
  text, found = search(checkpoint, prompt, jax.random.key(0))
  print(f"\n{text}\n\nended by {found.finish}, {found.counters['rewinds']} rewinds")


if __name__ == "__main__":
  main()
