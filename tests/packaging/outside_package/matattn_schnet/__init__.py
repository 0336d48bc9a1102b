"""SchNet for matattn, and crystals of pair potentials."""
