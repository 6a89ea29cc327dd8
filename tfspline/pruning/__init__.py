"""Pruning: criteria, budgets, plans, masks, slimming and compensation."""
