"""Measurements. `python -m benchmarks` lists them; each prints a table and keeps its record in benchmarks/results/."""
