"""Parts of the benchmark `control_plane`."""
