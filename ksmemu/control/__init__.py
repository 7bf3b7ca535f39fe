"""The control directory: what ksmd shows and obeys, and ksmd as it is seen from outside."""
