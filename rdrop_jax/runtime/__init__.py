"""Devices, checkpoints and logs. Knows nothing of tasks."""
