"""Training in torch alone: chat encoding, the order of rows, objectives, the loop and the export. Knows neither Ray nor DeepSpeed."""
