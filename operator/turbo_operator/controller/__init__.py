"""Reconciles TurboDeployments: all I/O of the operator."""
