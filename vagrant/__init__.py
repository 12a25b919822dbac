"""The lab: networks that fail on purpose, and the traffic that makes them fail."""
