"""Figures: arrays in, Figure out; one module a subject."""
