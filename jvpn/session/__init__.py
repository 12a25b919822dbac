"""The session machine, its record and the rules of ownership. Sans-I/O."""
