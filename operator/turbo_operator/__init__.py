"""Turbo's Kubernetes operator: a TurboDeployment becomes pods that answer several times faster."""
