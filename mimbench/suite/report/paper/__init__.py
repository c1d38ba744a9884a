"""The report's plots as figures for a paper: SVG and PDF, vector, fonts embedded."""
