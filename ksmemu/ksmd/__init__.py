"""Python in the scanner: all policy. It orders, agents do, outcomes say what really happened."""
