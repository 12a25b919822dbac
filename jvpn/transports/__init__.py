"""Transports behind one small interface."""
