"""Probes of many layers, sizes and shifts beside their controls: fitted, tested, resampled and drawn."""
