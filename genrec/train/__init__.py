"""Training: a base model from scratch, SID vocabulary, LoRA or full tuning, export."""
