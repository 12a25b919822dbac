# Other names for the scripts, which need no make. Arguments: make test ARGS='tests/unit -k replay'
.PHONY: setup lint test demo bench lab clean

setup lint test demo bench lab:
	@script/$@ $(ARGS)

# Caches only: the virtual environment stays.
clean:
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build *.egg-info
	find jvpn workers vagrant tests -name __pycache__ -type d -prune -exec rm -rf {} +
