"""Review what a change of a stack does, from Pulumi's previews. Used by `scripts.review`, also for pull requests.

capture.py runs `pulumi preview --json`, steps.py reads its output, redaction.py removes secrets, values.py and
offline.py compare. access.py, exposure.py, losses.py, interruption.py and verdict.py say what the change means, and
markdown.py writes it.
"""
