"""A machine: the supervisor of its computing process, and what Google's VMs add."""
