"""Text to vectors.

Owns text encoders, their cache and the `embed` step. Knows no code.
"""
