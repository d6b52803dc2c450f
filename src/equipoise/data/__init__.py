"""Records in, records out: reading, importing, checking, splitting, merging and describing data."""
