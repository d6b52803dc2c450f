"""Prompts and responses made by models: expand, refine, select. Generators and judges are passed in."""
