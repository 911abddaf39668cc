"""Items to codes, which others may share.

Owns every quantizer and what they are built of. Knows nothing of uniqueness.
"""
