"""Google Cloud: one module for each thing that a run needs there. Only imported for `platform: google`.

catalog, rules and inputs are pure: what exists, what is legal, what a run starts from. The other modules declare.
"""
