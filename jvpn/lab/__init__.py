"""Namespaces, links and impairments on a real kernel, for the demo and the tests."""
