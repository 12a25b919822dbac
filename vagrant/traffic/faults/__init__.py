"""What can happen to an uplink: one script a fault, `python -m vagrant.traffic.faults.NAME --help`."""
