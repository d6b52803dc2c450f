"""Rewards: callables that score responses and know their polarity."""
