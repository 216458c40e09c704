"""What a stack file may not ask for: combinations of keys, Google's rules, the limits of this machine."""
