"""This machine as a platform: a bucket is a folder, a machine is a process.

Pulumi keeps the providers of these resources by the names of their modules and classes, and finds them again by these
names at `pulumi destroy`: renaming one strands the stacks that exist.
"""
