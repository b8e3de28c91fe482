"""The pages' charts by subject: each function draws one SVG."""
