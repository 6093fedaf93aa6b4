"""The main job: settings, stages, distillation, evaluation."""
