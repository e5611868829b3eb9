"""Processes that end anywhere: what every command leaves behind, and what the next run makes of it."""
