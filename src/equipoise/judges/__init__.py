"""Judges: a guard, a scorer or a language model gives records the labels that a person could give."""
