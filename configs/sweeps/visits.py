"""How many visits a move needs, and how sure it has to be: 12 runs."""

PRODUCT = {
  "search.min_visits": (2, 4, 6, 8),
  "search.value_threshold": (0.6, 0.8, 0.9),
}
