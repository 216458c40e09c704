"""Engines, by which the trainers share a step's work; parameter servers, and their exchange with trainers."""
