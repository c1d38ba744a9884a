"""The report: one HTML file that needs nothing else, made from an output folder."""
