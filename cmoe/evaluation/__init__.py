"""From predictions to scores, and from scores to the measures of a stream."""
