"""Start runs on machines of a cluster: a thin file above torchrun, submitted with the cluster's own tool."""
