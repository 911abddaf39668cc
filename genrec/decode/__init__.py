"""Constrained decoding: what sequences are legal, and which of them a model likes best."""
