"""Modules that every task builds on, in Linen, each dropout site explicit."""
