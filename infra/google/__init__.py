"""Declare a run on Google Cloud, one module a component. Only imported for `platform: google`."""
