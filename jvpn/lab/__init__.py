"""The namespace lab: real kernel networks with seeded impairments, built and removed by one process.

Line 1 of every scenario::

    with Lab("demo") as lab:
        net = two_uplinks(lab, rtt_ms=20)

``namespaces`` makes network namespaces and runs processes in them, ``links`` joins them (``faults`` cuts and heals
the joints, ``nat`` translates in front of them), ``emulator`` is the wire with delay and loss whose decisions stand
in ``link_model``; ``gauge``, ``iperf`` and ``capture`` measure from outside.
"""
