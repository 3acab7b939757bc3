"""A run: a working directory, what goes into it, and what is made of it."""
