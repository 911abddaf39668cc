"""Prompts: templates and catalogue data in, datasets of (prompt, target) rows out."""
