module turbo.dev/embedded-cluster/pause

go 1.24.0
