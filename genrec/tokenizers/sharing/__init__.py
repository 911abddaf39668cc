"""Vocabularies that come from elsewhere and go elsewhere.

Owns peers' index files, the card and the model hub.
"""
