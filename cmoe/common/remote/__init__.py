"""What lies elsewhere, on the hub or on S3, and its copy on this machine."""
