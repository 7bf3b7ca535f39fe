"""Python in the worker: address spaces, their VMAs, advice, and the way to a ksmd."""
