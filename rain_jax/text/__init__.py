"""Text as a model reads and writes it: tables over the vocabulary, conversation formats."""
