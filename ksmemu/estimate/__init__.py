"""What merging would save, without merging: source.py ▶ fingerprint.py ▶ saving.py."""
