"""Item text to vectors, vectors to semantic IDs, semantic IDs to text and back.

Owns text encoders, quantizers, the rule that makes codes unique, and the measures of a vocabulary.
Knows neither prompts nor language models that recommend.
"""
