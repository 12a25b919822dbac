"""The deterministic simulator: the product's cores and worker tables on a virtual clock and a seeded network.

Read `world.py` first (what is joined, and how time passes), then `plan.py` (what a seed decides), `faults.py` (what
goes wrong) and `checks.py` (what must never happen).
"""
