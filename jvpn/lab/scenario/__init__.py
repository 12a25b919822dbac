"""Scenarios as data: what is broken when, and what must hold."""
