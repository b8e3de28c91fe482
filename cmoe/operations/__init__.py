"""What keeps a cluster's runs and stores going: preflight, status."""
