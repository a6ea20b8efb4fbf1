"""Clips as WebDataset shards: writing, reading, looking at them, checking them."""
