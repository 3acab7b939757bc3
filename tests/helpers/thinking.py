"""Chat templates like those of the field's families, and a tokenizer with their tokens."""

import copy
import dataclasses

# Like Qwen3: a closed thought before a last answer, none in earlier ones; one that is asked for
# without thinking is begun after a closed thought.
QWEN = (
  "{% set ns = namespace(last=0) %}"
  "{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}"
  "{% endfor %}"
  "{% for m in messages %}<|im_start|>{{ m.role }}\n"
  "{% if m.role == 'assistant' %}"
  "{% if '</think>' in m.content %}{% set said = m.content.split('</think>')[-1].lstrip('\n') %}"
  "{% else %}{% set said = m.content %}{% endif %}"
  "{% if loop.index0 > ns.last %}<think>\n\n</think>\n\n{% endif %}{{ said.lstrip('\n') }}"
  "{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
  "{% if add_generation_prompt %}<|im_start|>assistant\n"
  "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n"
  "{% endif %}{% endif %}"
)
# Like DeepSeek-R1: an answer is begun in the middle of a thought.
R1 = (
  "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}"
  "{% elif m.role == 'user' %}<|im_start|>{{ m.content }}"
  "{% else %}<|im_end|>{{ m.content.split('</think>')[-1] }}</s>{% endif %}{% endfor %}"
  "{% if add_generation_prompt %}<|im_end|><think>\n{% endif %}"
)
# Like Gemma: no system messages, turns in turn, white space cut off.
GEMMA = (
  "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}"
  "{% endif %}{% for m in messages %}"
  "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('turns') }}{% endif %}"
  "<|im_start|>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}<|im_end|>\n"
  "{% endfor %}{% if add_generation_prompt %}<|im_start|>model\n{% endif %}"
)
# Like LLaMA 2: the system message in the first user turn, a space before answers.
LLAMA2 = (
  "{% for m in messages %}{% if m.role == 'system' %}{% elif m.role == 'user' %}"
  "<s>[INST] {% if loop.index0 == 1 and messages[0].role == 'system' %}<<SYS>>\n"
  "{{ messages[0].content }}\n<</SYS>>\n\n{% endif %}{{ m.content | trim }} [/INST]"
  "{% else %} {{ m.content | trim }} </s>{% endif %}{% endfor %}"
)
# A template that leaves system messages out, without a word.
DROPS = "{% for m in messages if m.role != 'system' %}<|im_start|>{{ m.content }}{% endfor %}"
TEMPLATES = {"qwen": QWEN, "r1": R1, "gemma": GEMMA, "llama2": LLAMA2, "drops": DROPS}


def labelled(preference):
  """The preference with labels that the tests' small tokenizer has as single tokens."""
  readings = tuple(dataclasses.replace(r, good=("A",), bad=("B",)) for r in preference.readings)
  return dataclasses.replace(preference, readings=readings)


def with_template(tokenizer, template):
  """A copy of a tokenizer with a chat template and the tokens that stand in it."""
  made = copy.deepcopy(tokenizer)
  made.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
  made.add_tokens(["<think>", "</think>"])  # no special ones, as in the families' tokenizers
  made.chat_template = template
  return made
