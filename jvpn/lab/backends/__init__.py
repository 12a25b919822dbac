"""Where the lab's machines live: network namespaces of this host, or virtual machines."""
