"""Argument checks, files that are replaced atomically, and the roles of distributed workers."""
