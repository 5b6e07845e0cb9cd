"""What a picture shows: ImageNet's thousand kinds, and the network that few-shot classifiers start from."""
