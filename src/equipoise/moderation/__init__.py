"""The guard in use: judging prompts and responses, and telling refusals from answers."""
