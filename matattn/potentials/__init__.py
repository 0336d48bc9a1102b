"""Interatomic potentials: structures with energies, forces and stresses."""
