"""Hydra configuration tree, reachable as ``pkg://matattn.conf``."""
