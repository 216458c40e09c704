"""What a change of a stack does, read from Pulumi's previews: for `scripts.review`, and through it for pull requests.

previewing.py has `pulumi preview --json` write, preview.py reads it, hidden.py takes secrets out, values.py compares,
judge.py, access.py and run.py say what it means, markdown.py writes it down.
"""
