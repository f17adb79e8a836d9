"""`turbo plan` and `turbo explain`: the operator's planner for a person.

Inputs (`inputs`, `manifests`, `model`, `cluster_reader`), questions (`plan_query`, `whatif`) and output
(`table`, `document`, `plot`) are apart. Neither matplotlib nor a Kubernetes client is loaded before a flag
needs it.
"""
