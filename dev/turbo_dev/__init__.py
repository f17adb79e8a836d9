"""The embedded Kubernetes that tests and the demo run on, its images, and the demo itself."""
