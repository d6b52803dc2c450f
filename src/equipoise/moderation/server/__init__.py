"""The moderation server: one guard behind the protocols that clients already speak."""
