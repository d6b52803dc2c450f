"""Losses as pure functions: tensors in, one value per example out. Imports torch and nothing of ours."""
