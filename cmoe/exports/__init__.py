"""What leaves cmoe for other tools: LoRAs for PEFT, models for transformers."""
