"""The report of one or more evaluations: one HTML file that needs nothing from outside."""
