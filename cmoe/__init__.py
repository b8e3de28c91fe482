"""cmoe: continual learning of vision-language models by a growing mixture of LoRA experts."""
