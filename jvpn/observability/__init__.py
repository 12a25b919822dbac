"""Events, sinks, timeline and snapshots: what people and auditors see."""
