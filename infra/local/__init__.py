"""Run a stack on this machine: a bucket is a folder, a machine is a process.

Pulumi finds the providers of these resources by the names of their modules and classes, also at `pulumi destroy`:
renaming one strands the stacks that exist.
"""
