"""Policy model, health estimators and decisions: pure functions of their arguments."""
