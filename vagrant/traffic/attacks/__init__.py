"""Attacks on the lab's gateway, each runnable alone: `python -m vagrant.traffic.attacks.NAME --help`.

They run on the lab's router, on the way between client and gateway: they see what the client sends, and send with any
source. What must hold while one runs stands in its docstring.
"""
