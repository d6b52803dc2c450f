"""What stays in a data set: near-duplicates, language, gibberish and other filters."""
