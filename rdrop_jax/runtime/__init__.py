"""Devices, checkpoints and logs, independent of tasks."""
