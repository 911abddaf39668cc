"""Codes that no two items share.

Owns the policies that tell apart the items that collide. Knows no quantizer.
"""
