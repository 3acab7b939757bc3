"""Batches over a mesh, processes, threads."""
