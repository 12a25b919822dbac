"""Scenarios as data: what happens to which network under which traffic, and what must be true of it afterwards."""
