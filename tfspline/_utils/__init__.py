"""Argument validation, atomic file writes, and the roles of distributed workers."""
