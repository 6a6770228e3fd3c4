"""Pools in backing files."""
