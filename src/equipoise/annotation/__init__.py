"""Labels from people and models: cards and tools, agreement, consensus, routing."""
