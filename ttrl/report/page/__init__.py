"""The report: one HTML page about runs that needs no network, and its plots as files."""
