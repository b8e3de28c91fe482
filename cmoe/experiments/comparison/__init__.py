"""The methods side by side in the same stream, and a study of what makes one of them work."""
