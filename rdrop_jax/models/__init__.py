"""Linen modules shared by all tasks, with explicit dropout sites."""
