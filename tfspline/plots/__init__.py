"""Pictures of partitions and of trainings; needs matplotlib."""
