"""`turbo plan`: the operator's planner asked by a person.

Where the inputs come from (`offline`, `files`, `model`), what is asked (`question`, `whatif`) and how the
answer is shown (`show`, `table`, `document`) are apart. No Kubernetes client is loaded.
"""
