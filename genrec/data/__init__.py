"""Raw files to a catalogue, a log of who chose what, and a split.

Owns every source format, the filters, the order of time and the split. Knows neither embeddings nor
prompts nor models.
"""
