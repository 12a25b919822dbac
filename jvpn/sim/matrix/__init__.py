"""The rows of the failure matrix that need no kernel, as scenarios that bear their ids.

Read `scene.py` first; `acts.py` is what can happen, `holds.py` what can be asked for; the others are the rows.
"""
