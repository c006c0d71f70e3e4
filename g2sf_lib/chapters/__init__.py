"""Emptied: what a chapter alone needs stands in its notebook."""
