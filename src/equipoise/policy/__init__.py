"""Online policies: learned from their own responses, under constraints on what these cost."""
