"""Backbones, their adapters and heads, and the built-in models."""
