"""How good a vocabulary is.

Owns the measures, the summary that is kept with a tokenizer, and the report on several of them.
"""
