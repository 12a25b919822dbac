"""Ownership stores: who owns a session, durably."""
