"""Train spaCy text classifiers from a corpus that lives on the device, with zero copies a step."""
