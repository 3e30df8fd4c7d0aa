"""Structured pruning: score heads, feed-forward neurons and hidden units, choose, cut.

Nothing is imported here: :mod:`compressor.pruning.widths` must stay free of torch, since recipes
are planned without it.
"""
