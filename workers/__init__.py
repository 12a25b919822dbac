"""The data plane: one process per core that seals, opens and forwards superpackets."""
