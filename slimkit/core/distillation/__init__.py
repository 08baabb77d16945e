"""Knowledge distillation: a student learns from a teacher's logits as well as from the labels."""
