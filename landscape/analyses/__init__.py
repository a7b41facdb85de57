"""A task and states in, a dataset out: one file for each question."""
