"""Programs that own memory, each showing one behaviour; `python -m workers.NAME` from a checkout."""
