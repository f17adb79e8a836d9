"""`turbo plan` and `turbo explain`: the operator's planner asked by a person.

Where the inputs come from (`inputs`, `files`, `nodes`, `model`, `live`), what is asked (`question`,
`whatif`) and how the answer is shown (`show`, `table`, `document`, `plot`) are apart. Neither
matplotlib nor a Kubernetes client is loaded before a flag needs it.
"""
