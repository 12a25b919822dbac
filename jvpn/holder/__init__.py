"""The descriptor holder (parent of the workers) and the one-shot BPF loader."""
