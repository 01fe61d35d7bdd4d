"""Attention over rows whose tokens lie on several devices: one file for each strategy."""
